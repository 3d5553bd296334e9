"""The process that measures: on this machine, or on another one that has nothing but onnxruntime and numpy (no torch).

It reads a job as one line of JSON, opens both files, writes `ready`, waits for `go`, measures and answers with one line
of JSON. It ends when its standard input closes, so a caller that is killed leaves no process behind to disturb the next
measurement.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainables.locks import NODE, DeviceLock, end_with_caller
from trainables.records.encoding import decode, to_json
from trainables.records.latency import ConditionsRecord, LatencyRecord
from trainables.stages.measuring.machine import Counters, bind, conditions, disturbed_by, normal_priority
from trainables.stages.measuring.probes import Probes
from trainables.stages.measuring.timing import alternate, throughput_ips
from trainables.stages.models.devices.energy import open_meter
from trainables.stages.models.devices.gpu import GpuState, measure_others_on_gpu
from trainables.stages.runtimes.base import RUNTIMES, AbsentError, Artifact, Opened
from trainables.stages.runtimes.opening import open_runtime

# Attempts per file if no number is asked for; after the last one the least disturbed is kept and marked, as the machine
# may never be quiet.
ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to measure."""

    candidate: Artifact
    reference: Artifact
    runtime: str
    """A name in `runtimes.base.RUNTIMES`."""
    threads: int
    """CPU threads."""
    seconds: float
    """Time limit for timing both files, warm-up excluded; four times that if calls are too slow for 8 blocks."""
    attempts: int = ATTEMPTS
    """Times that both are measured at most."""
    reference_runtime: str | None = None
    """Runtime of the reference; None means the same as the candidate's."""
    batch: int = 1
    """Images per call."""
    throughput_batch: int | None = None
    """Images per call for measuring the candidate's throughput as well; None skips that."""
    address: str | None = None
    """ssh://[USER@]HOST[:PORT] of the machine to measure on, with the CPU runtime; None is this one."""
    usual_clock_ms: float | None = None
    """What `ConditionsRecord.clock_probe_ms` usually is there; None while nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result of a job."""

    candidate: LatencyRecord
    reference: LatencyRecord
    ratio: float
    """Candidate's time by the reference's, from pairs of neighbouring blocks."""
    ratio_half_width: float
    """Half-width of its 95 % interval, relative to it."""
    throughput_ips: float | None
    """Images per second in calls of `throughput_batch` images."""


def _measure(job: Job, probes: Probes, candidate: Opened, reference: Opened, wide: Opened | None) -> Measured:
    """Time both files, and read the machine's counters before and after."""
    cores = bind(job.threads)
    on_gpu = RUNTIMES[job.runtime].on_gpu
    gpu_others_share = measure_others_on_gpu() if on_gpu else None
    before = Counters.now()
    with open_meter(on_gpu=on_gpu) as meter:
        took = alternate(
            candidate.runner,
            reference.runner,
            seconds=job.seconds,
            probes=probes,
            threads=job.threads,
            meter=meter,
        )
    gpu = GpuState.now() if on_gpu else None  # read at once: throttling ends within moments
    seen = conditions(before, Counters.now(), cores, gpu=gpu, gpu_others_share=gpu_others_share)
    return Measured(
        candidate=_judge(took.candidate, seen, took.candidate_conditions, job.usual_clock_ms),
        reference=_judge(took.reference, seen, took.reference_conditions, job.usual_clock_ms),
        ratio=took.ratio,
        ratio_half_width=took.ratio_half_width,
        throughput_ips=throughput_ips(wide.runner, seconds=job.seconds / 40) if wide else None,
    )


def _judge(
    latency: LatencyRecord, machine: ConditionsRecord, probed: Mapping[str, float], usual_clock_ms: float | None
) -> LatencyRecord:
    """Add the conditions; what came from outside outranks what the file's own blocks say."""
    fields: dict[str, Any] = dict(probed)
    if usual_clock_ms is not None and "clock_probe_ms" in probed:
        fields["clock_behind"] = probed["clock_probe_ms"] / usual_clock_ms - 1
    seen = dataclasses.replace(machine, **fields)
    why = disturbed_by(seen)
    return dataclasses.replace(
        latency, conditions=seen, latency_doubt=why or latency.latency_doubt, latency_disturbed=bool(why)
    )


def _open(job: Job) -> tuple[Opened, Opened, Opened | None]:
    """Open candidate and reference, and the candidate once more for throughput if that is wanted."""
    beside = job.reference_runtime or job.runtime
    candidate, reference = (
        open_runtime(runtime, artifact, threads=job.threads, batch=job.batch)
        for runtime, artifact in ((job.runtime, job.candidate), (beside, job.reference))
    )
    if job.throughput_batch is None:
        return candidate, reference, None
    return (
        candidate,
        reference,
        open_runtime(job.runtime, job.candidate, threads=job.threads, batch=job.throughput_batch),
    )


@contextmanager
def _channel() -> Iterator[IO[str]]:
    """Reserve standard output for answers: whatever libraries print goes to standard error instead."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        yield channel


def main() -> int:
    """Run the measuring process: read a job, open its files, measure, answer.

    On another machine an argument names a folder of locks, so that callers of several nodes take turns.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides
    lock = DeviceLock(Path(sys.argv[1]), NODE) if len(sys.argv) > 1 else None
    job = decode(Job, json.loads(sys.stdin.readline()), where="the job")
    with _channel() as channel:
        try:
            with lock.shared() if lock else contextlib.nullcontext():
                opened, probes = _open(job), Probes()
        except AbsentError as error:
            channel.write(json.dumps({"absent": str(error)}) + "\n")
            return 0
        channel.write(json.dumps({"ready": True}) + "\n")
        channel.flush()
        if sys.stdin.readline() != "go\n":
            return 1
        end_with_caller()
        normal_priority()
        with lock.alone() if lock else contextlib.nullcontext():
            measured = _measure(job, probes, *opened)
            channel.write(json.dumps(json.loads(to_json(measured))) + "\n")
            channel.flush()
            os._exit(0)  # skip a tidy shutdown: the whole node waits for the lease


if __name__ == "__main__":
    raise SystemExit(main())
