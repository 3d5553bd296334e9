"""The latency of a file on this machine, drift corrected: the only place where a measured time becomes a figure."""

import dataclasses
import platform
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Never

from trainables.configs import MeasureConfig
from trainables.latency import LatencyRecord, latency_from_json
from trainables.records import ExportRecord, read_row, to_json, write_text
from trainables.stages.backends import RUNTIMES, Artifact
from trainables.stages.clean_room import Job, Measured, measure_apart
from trainables.stages.gpu_state import gpu_name
from trainables.stages.machine import DRIFT_LIMIT
from trainables.stages.workspace import Workspace
from trainables.store import Key, stage_key

VERSION = 2
ANCHOR_ROOMS = 4
"""Measurements of the reference until two agree."""
CORRECTED = 0.5
"""Power of the drift that is taken out. A lower clock slows both files alike (1), a neighbour in the cache slows the
larger one alone (0): half is off by half the drift at most, 2.5 % within `DRIFT_LIMIT`. What a machine's own sweeps
say of it: tests/benchmarks/drift.py."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed:
    """What a file takes beside the reference."""

    latency: LatencyRecord
    reference_latency_p50_ms: float
    """The reference's own p50, the same for all files that are compared with it."""
    reference_latency_raw_p50_ms: float
    """Its p50 in alternation with this file, drift included."""
    throughput_ips: float | None


def anchor_key(measure: MeasureConfig, reference: ExportRecord) -> Key:
    """Where the reference's own latency on a machine like this one lies in the store."""
    return stage_key(
        "anchor",
        version=VERSION,
        parents=[reference.onnx_sha256],
        processor=hardware(measure.latency_runtime),
        **vars(measure),
    )


def anchor(measure: MeasureConfig, reference: ExportRecord, place: Workspace) -> Generator[Never, None, LatencyRecord]:
    """The reference's own latency, in alternation with itself, measured once: the scale of all others."""
    key = anchor_key(measure, reference)

    def compute(folder: Path) -> Generator[Never, None, None]:
        path = reference.folder / "model.onnx"
        write_text(folder / "record.json", to_json(agreed(lambda: _measure(measure, path, path, place).candidate)))
        yield from ()

    return latency_from_json(read_row((yield from place.store.obtain(key, compute))))


def agreed(take: Callable[[], LatencyRecord]) -> LatencyRecord:
    """The faster of two clean measurements that agree within half of `DRIFT_LIMIT`.

    A slow spell of the machine that no counter shows would be in the scale of all files. Nothing is repeated once a
    measurement is not clean: `take` has tried that already. Four clean ones that all differ are called noisy.

    Args:
        take: measures once, in a process of its own.
    """
    taken: list[LatencyRecord] = []
    for _ in range(ANCHOR_ROOMS):
        now = take()
        if now.verdict != "clean":
            return taken[0] if taken else now
        for other in taken:
            slower, faster = sorted((now, other), key=_p50, reverse=True)
            if _p50(slower) <= (1 + DRIFT_LIMIT / 2) * _p50(faster):
                return faster
        taken.append(now)
    return dataclasses.replace(min(taken, key=_p50), latency_noisy=True)


def _p50(latency: LatencyRecord) -> float:
    return latency.latency_p50_ms


def timed(
    measure: MeasureConfig,
    path: Path,
    reference: ExportRecord,
    own: LatencyRecord,
    place: Workspace,
    *,
    throughput_batch: int | None = None,
) -> Timed:
    """Latency of one image through `path`, in alternation with the reference's file, while nobody else computes.

    latency_p50_ms = p50 * (reference's own p50 / reference's p50 in this alternation) ** CORRECTED, and so for the
    other percentiles: what slowed the machine, slowed both, if not alike. A drift of more than `DRIFT_LIMIT` is
    contamination, and measured again.

    Args:
        own: the reference's own latency, from `anchor`.
        throughput_batch: images a call for the throughput; None leaves that out.
    """
    found = _measure(measure, path, reference.folder / "model.onnx", place, throughput_batch, own)
    faster = own.latency_raw_p50_ms / found.reference.latency_raw_p50_ms
    return Timed(
        latency=found.candidate.scaled(faster**CORRECTED),
        reference_latency_p50_ms=own.latency_raw_p50_ms,
        reference_latency_raw_p50_ms=found.reference.latency_raw_p50_ms,
        throughput_ips=found.throughput_ips,
    )


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def hardware(runtime: str) -> str:
    """What a latency in a runtime of `backends.RUNTIMES` holds for: the processor, and the GPU if that computes."""
    gpu = gpu_name() if RUNTIMES[runtime].device == "cuda" else ""
    return f"{processor()}, {gpu}" if gpu else processor()


def _measure(
    measure: MeasureConfig,
    path: Path,
    reference: Path,
    place: Workspace,
    throughput_batch: int | None = None,
    own: LatencyRecord | None = None,
) -> Measured:
    job = Job(
        candidate=Artifact(onnx=path),
        reference=Artifact(onnx=reference),
        runtime=measure.latency_runtime,
        threads=measure.latency_threads,
        seconds=measure.latency_seconds,
        throughput_batch=throughput_batch,
        reference_own_ms=own.latency_raw_p50_ms if own and own.verdict == "clean" else None,
    )
    return measure_apart(job, place.lease())
