"""The latency of a file on this machine, drift corrected: the only place where a measured time becomes a figure."""

import dataclasses
from pathlib import Path

from trainables.config.candidate import MeasureConfig
from trainables.layout import ONNX_FILE
from trainables.records.latency import LatencyRecord
from trainables.records.stages import ExportRecord
from trainables.stages.measuring.clean_room import Job, Measured, measure_apart
from trainables.stages.models.devices import gpu_name, processor
from trainables.stages.runtimes.base import RUNTIMES, Artifact
from trainables.stages.workspace import Workspace

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

    What slowed the machine, slowed both, if not alike: percentiles are corrected by `correction`. A drift of more than
    `DRIFT_LIMIT` is contamination, and measured again.

    Args:
        own: the reference's own latency, from `scale`.
        throughput_batch: images a call for the throughput; None leaves that out.
    """
    own_ms = own.latency_raw_p50_ms
    found = measured_beside(
        measure,
        path,
        reference.folder / ONNX_FILE,
        place,
        reference_own_ms=own_ms,
        throughput_batch=throughput_batch,
    )
    beside_ms = found.reference.latency_raw_p50_ms
    return Timed(
        latency=found.candidate.scaled(correction(own_ms, beside_ms)),
        reference_latency_p50_ms=own_ms,
        reference_latency_raw_p50_ms=beside_ms,
        throughput_ips=found.throughput_ips,
    )


def correction(own_ms: float, beside_ms: float) -> float:
    """What to multiply a time with that was taken while the reference took `beside_ms` instead of its own time."""
    return float((own_ms / beside_ms) ** CORRECTED)


def measured_beside(
    measure: MeasureConfig,
    path: Path,
    reference: Path,
    place: Workspace,
    *,
    reference_own_ms: float | None = None,
    throughput_batch: int | None = None,
) -> Measured:
    """Both files in alternation, in a clean room, as the clock says.

    Args:
        reference_own_ms: what the reference takes alone, where that is known: the drift is judged by it.
    """
    job = Job(
        candidate=Artifact(onnx=path),
        reference=Artifact(onnx=reference),
        runtime=measure.latency_runtime,
        threads=measure.latency_threads,
        seconds=measure.latency_seconds,
        reference_own_ms=reference_own_ms,
        throughput_batch=throughput_batch,
    )
    place.make_room()
    return measure_apart(job, place.device_lock())


def hardware(runtime: str) -> str:
    """What a latency in a runtime of `backends.RUNTIMES` holds for: the processor, and the GPU if that computes."""
    gpu = gpu_name() if RUNTIMES[runtime].device == "cuda" else ""
    return f"{processor()}, {gpu}" if gpu else processor()
