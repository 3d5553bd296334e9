"""Measure the teacher's own latency on a machine: one number, to put all files of a sweep on one scale.

No latency is corrected by it. The ratio of a file to the teacher comes from their own alternation.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from trainables.config.candidate import MeasureConfig
from trainables.files import write_text
from trainables.layout import ONNX_FILE, RECORD
from trainables.records.encoding import read_record, to_json
from trainables.records.latency import CLEAN, LatencyRecord
from trainables.records.stages import ExportRecord
from trainables.stages.measuring.beside_teacher import find_or_measure, hardware, time_beside
from trainables.stages.workspace import Workspace
from trainables.store.results import Key, stage_key

VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The teacher's own latency, and where the store holds it."""

    own: LatencyRecord
    keys: tuple[Key, ...]


def find_scale(measure: MeasureConfig, reference: ExportRecord, place: Workspace, *, check: bool = False) -> Scale:
    """Find the scale of machines like this one, or measure the first.

    Args:
        check: measure the teacher once more if its latency was not clean. Done when a sweep begins, and not later: all
            files of a sweep are on one scale.
    """

    def key_of(take: int) -> Key:
        return stage_key(
            "scale",
            version=VERSION,
            parents=[reference.onnx_sha256],
            processor=hardware(measure.latency_runtime),
            take=take,
            **measure.key_parts(),
        )

    def compute(folder: Path) -> None:
        # the reference beside itself: its blocks come as often as a candidate's
        took = time_beside(measure, reference.folder / ONNX_FILE, reference, place)
        write_text(folder / RECORD, to_json(took.candidate))

    found = find_or_measure(place.store, key_of, compute, _is_clean, again=check)
    own = read_record(LatencyRecord, found.folder)
    return Scale(own=own if found.fresh else dataclasses.replace(own, latency_alone_s=0.0), keys=found.keys)


def _is_clean(folder: Path) -> bool:
    return read_record(LatencyRecord, folder).verdict == CLEAN
