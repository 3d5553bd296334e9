"""The reference's own latency on a machine: the scale of all others, checked when a sweep begins."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainables.config.candidate import MeasureConfig
from trainables.files import write_text
from trainables.layout import ONNX_FILE, RECORD
from trainables.records.encoding import read_record, to_json
from trainables.records.latency import LatencyRecord
from trainables.records.stages import ExportRecord
from trainables.stages.measuring.beside_teacher import hardware, measured_beside
from trainables.stages.measuring.machine import DRIFT_LIMIT
from trainables.stages.workspace import Workspace
from trainables.store.results import Key, stage_key

VERSION = 2
ROOMS = 4
"""Measurements of the reference until two agree, at most."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What the reference takes alone, and where the store holds that."""

    own: LatencyRecord
    keys: tuple[Key, ...]
    """Its own, last, and those of the scales before it: the newest is found by counting, so none may be collected."""


def find_scale(measure: MeasureConfig, reference: ExportRecord, place: Workspace, *, check: bool = False) -> Scale:
    """The newest scale of machines like this one; measured if there is none.

    Args:
        check: measure the reference once more, and take a new scale if the machine is quiet and the old one is not
            clean or not within `DRIFT_LIMIT`. When a sweep begins: all that it measures then has one scale, and a
            machine that is slower than it was last week makes no file look contaminated.
    """
    keys = _keys(measure, reference)
    known = [next(keys)]
    newest = None
    while (folder := place.store.find(known[-1])) is not None:
        newest = Scale(own=read_record(LatencyRecord, folder), keys=tuple(known))
        known.append(next(keys))
    if newest is not None and not (check and _outdated(newest.own, measure, reference, place)):
        return newest
    folder = place.store.once(known[-1], partial(_measure, measure, reference, place))
    return Scale(own=read_record(LatencyRecord, folder), keys=tuple(known))


def agreed(take: Callable[[], LatencyRecord]) -> LatencyRecord:
    """The fastest clean measurement, as soon as the second fastest is within half of `DRIFT_LIMIT` of it.

    A slow spell of the machine that no counter shows would be in the scale of all files. If no two agree, the result is
    noisy, within what they differ by. A machine that others disturb from the start is not asked again: `take` has
    tried that already.

    Args:
        take: measures once, in a process of its own.
    """
    taken: list[LatencyRecord] = []
    while len(taken) < ROOMS and not (taken and all(latency.latency_contaminated for latency in taken)):
        taken.append(take())
        clean = _clean(taken)
        if len(clean) > 1 and _apart(clean) <= DRIFT_LIMIT / 2:
            return _with_pauses_of(taken, clean[0])
    clean = _clean(taken)
    if not clean:
        return _with_pauses_of(taken, min(taken, key=lambda latency: latency.latency_half_width))
    width = max(clean[0].latency_half_width, _apart(clean) / 2 if len(clean) > 1 else 0.0)
    unsure = dataclasses.replace(clean[0], latency_noisy=True, latency_half_width=width)
    return _with_pauses_of(taken, unsure)


def _keys(measure: MeasureConfig, reference: ExportRecord) -> Iterator[Key]:
    """Where the store holds the scales of a machine like this one, oldest first."""
    for take in itertools.count():
        yield stage_key(
            "scale",
            version=VERSION,
            parents=[reference.onnx_sha256],
            processor=hardware(measure.latency_runtime),
            take=take,
            **vars(measure),
        )


def _measure(measure: MeasureConfig, reference: ExportRecord, place: Workspace, folder: Path) -> None:
    path = reference.folder / ONNX_FILE
    own = agreed(lambda: measured_beside(measure, path, path, place).candidate)
    write_text(folder / RECORD, to_json(own))


def _outdated(own: LatencyRecord, measure: MeasureConfig, reference: ExportRecord, place: Workspace) -> bool:
    """Whether the machine is quiet now and the scale is not what it would measure."""
    path = reference.folder / ONNX_FILE
    now = measured_beside(measure, path, path, place).candidate
    if now.verdict != "clean":
        return False
    return own.verdict != "clean" or abs(_p50(now) / _p50(own) - 1) > DRIFT_LIMIT


def _clean(taken: list[LatencyRecord]) -> list[LatencyRecord]:
    """Those that are clean, fastest first."""
    return sorted((latency for latency in taken if latency.verdict == "clean"), key=_p50)


def _apart(clean: list[LatencyRecord]) -> float:
    """By how much the second fastest is slower than the fastest, relative to that."""
    return _p50(clean[1]) / _p50(clean[0]) - 1


def _p50(latency: LatencyRecord) -> float:
    return latency.latency_p50_ms


def _with_pauses_of(taken: list[LatencyRecord], chosen: LatencyRecord) -> LatencyRecord:
    """One of them, with the attempts of all and the time that others had to pause for them."""
    return dataclasses.replace(
        chosen,
        latency_attempts=sum(latency.latency_attempts for latency in taken),
        latency_alone_s=sum(latency.latency_alone_s for latency in taken),
    )
