"""Measure the reference's own latency on a machine: the scale of all others, checked when a sweep begins."""

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
from trainables.stages.measuring.beside_teacher import hardware, measure_beside
from trainables.stages.measuring.machine import DRIFT_LIMIT
from trainables.stages.workspace import Workspace
from trainables.store.results import Key, stage_key

VERSION = 2
ROOMS = 4  # at most this many measurements of the reference, each in its own clean room, until two agree


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The reference's own latency, and where the store holds it."""

    own: LatencyRecord
    keys: tuple[Key, ...]
    """Keys of all scales up to this one, oldest first: the newest is found by counting, so the store must keep all."""


def find_scale(measure: MeasureConfig, reference: ExportRecord, place: Workspace, *, check: bool = False) -> Scale:
    """Find the newest scale of machines like this one, or measure the first.

    Args:
        check: measure the reference once more, and take a new scale if the machine is quiet and the old scale is not
            clean or not within `DRIFT_LIMIT`. Done when a sweep begins: everything it measures then shares one scale,
            and a machine that has become slower since last week does not make every file look contaminated.
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


def measure_until_agreed(take: Callable[[], LatencyRecord]) -> LatencyRecord:
    """Measure until the two fastest clean measurements agree within half of `DRIFT_LIMIT`; return the fastest.

    A slow spell of the machine that no counter shows would distort the scale of all files. If no two agree, the result
    is marked noisy, with half their difference as half-width. If every attempt was contaminated, do not retry: `take`
    has already retried.

    Args:
        take: measures once, in a process of its own.
    """
    taken: list[LatencyRecord] = []
    while len(taken) < ROOMS and not (taken and all(latency.latency_contaminated for latency in taken)):
        taken.append(take())
        clean = _clean(taken)
        if len(clean) > 1 and _gap(clean) <= DRIFT_LIMIT / 2:
            return _with_pauses_of(taken, clean[0])
    clean = _clean(taken)
    if not clean:  # a marked scale is better than none: the next check replaces it
        return _with_pauses_of(taken, min(taken, key=lambda latency: latency.latency_half_width))
    width = max(clean[0].latency_half_width, _gap(clean) / 2 if len(clean) > 1 else 0.0)
    unsure = dataclasses.replace(clean[0], latency_noisy=True, latency_half_width=width)
    return _with_pauses_of(taken, unsure)


def _keys(measure: MeasureConfig, reference: ExportRecord) -> Iterator[Key]:
    """The store keys of the scales of a machine like this one, oldest first, without end."""
    for take in itertools.count():
        yield stage_key(
            "scale",
            version=VERSION,
            parents=[reference.onnx_sha256],
            processor=hardware(measure.latency_runtime),
            take=take,
            **measure.key_parts(),
        )


def _measure(measure: MeasureConfig, reference: ExportRecord, place: Workspace, folder: Path) -> None:
    path = reference.folder / ONNX_FILE
    # the reference beside itself: the same alternation as candidates, so the same state of the caches
    own = measure_until_agreed(lambda: measure_beside(measure, path, path, place).candidate)
    write_text(folder / RECORD, to_json(own))


def _outdated(own: LatencyRecord, measure: MeasureConfig, reference: ExportRecord, place: Workspace) -> bool:
    """Measure once more; whether the machine is quiet now and the scale no longer fits it."""
    path = reference.folder / ONNX_FILE
    now = measure_beside(measure, path, path, place).candidate
    if now.verdict != "clean":
        return False  # a disturbed measurement proves nothing against the scale
    return own.verdict != "clean" or abs(_p50(now) / _p50(own) - 1) > DRIFT_LIMIT


def _clean(taken: list[LatencyRecord]) -> list[LatencyRecord]:
    """The clean measurements, fastest first."""
    return sorted((latency for latency in taken if latency.verdict == "clean"), key=_p50)


def _gap(clean: list[LatencyRecord]) -> float:
    """How much slower the second fastest is than the fastest, relative to the fastest."""
    return _p50(clean[1]) / _p50(clean[0]) - 1


def _p50(latency: LatencyRecord) -> float:
    return latency.latency_p50_ms


def _with_pauses_of(taken: list[LatencyRecord], chosen: LatencyRecord) -> LatencyRecord:
    """The chosen measurement, with the attempts of all and the time that other work had to pause for them."""
    return dataclasses.replace(
        chosen,
        latency_attempts=sum(latency.latency_attempts for latency in taken),
        latency_alone_s=sum(latency.latency_alone_s for latency in taken),
    )
