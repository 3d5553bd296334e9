"""Time a file beside the teacher's and correct for drift: the only place where a time becomes a reported latency."""

import dataclasses
from pathlib import Path

from trainables.config.candidate import MeasureConfig
from trainables.layout import ONNX_FILE
from trainables.records.latency import LatencyRecord
from trainables.records.stages import ExportRecord
from trainables.stages.measuring.clean_room import Job, Measured, measure_apart
from trainables.stages.models.devices import gpu_name, processor_name
from trainables.stages.runtimes.base import RUNTIMES, Artifact
from trainables.stages.workspace import Workspace

# Exponent of the drift correction. A lower clock slows both files alike (1); a neighbour in the cache slows only the
# larger one (0). One half is off by at most half the drift, 2.5 % within `DRIFT_LIMIT`. tests/benchmarks/drift.py
# estimates it from a machine's own sweeps.
CORRECTED = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed:
    """The times of a file beside the reference."""

    latency: LatencyRecord
    reference_latency_p50_ms: float
    """The reference's own p50, the same for all files that are compared with it."""
    reference_latency_raw_p50_ms: float
    """Its p50 in alternation with this file, drift included."""
    throughput_ips: float | None


def time_beside(
    measure: MeasureConfig,
    path: Path,
    reference: ExportRecord,
    own: LatencyRecord,
    place: Workspace,
    *,
    throughput_batch: int | None = None,
) -> Timed:
    """Measure the latency of one image through `path`, in alternation with the reference's file, alone on the node.

    A slow machine slows both files, though not equally: percentiles are multiplied by `correction`. A drift of more
    than `DRIFT_LIMIT` counts as contamination and is measured again.

    Args:
        own: the reference's own latency, from `find_scale`.
        throughput_batch: images per call for the throughput; None skips that.
    """
    own_ms = own.latency_raw_p50_ms
    found = measure_beside(
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
    """The factor for a time that was taken while the reference took `beside_ms` instead of `own_ms`."""
    return float((own_ms / beside_ms) ** CORRECTED)


def measure_beside(
    measure: MeasureConfig,
    path: Path,
    reference: Path,
    place: Workspace,
    *,
    reference_own_ms: float | None = None,
    throughput_batch: int | None = None,
) -> Measured:
    """Measure both files in alternation in a clean room, without drift correction.

    Args:
        reference_own_ms: the reference's own p50, against which drift is judged; None if unknown.
    """
    job = Job(
        candidate=Artifact(onnx=path),
        reference=Artifact(onnx=reference),
        runtime=measure.latency_runtime,
        threads=measure.latency_threads,
        seconds=measure.latency_seconds,
        attempts=measure.latency_max_attempts,
        reference_own_ms=reference_own_ms,
        throughput_batch=throughput_batch,
    )
    place.make_room()
    return measure_apart(job, place.device_lock())


def hardware(runtime: str) -> str:
    """The hardware that a latency in a runtime of `runtimes.base.RUNTIMES` is valid for: processor, and GPU if used."""
    gpu = gpu_name() if RUNTIMES[runtime].device == "cuda" else ""
    return f"{processor_name()}, {gpu}" if gpu else processor_name()
