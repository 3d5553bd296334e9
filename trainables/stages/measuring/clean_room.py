"""Measure latency in a clean room: a fresh process bound to its CPUs, with no other work on the node (no torch).

The measuring process reads a job as one line of JSON, opens both files, writes `ready`, waits for `go`, measures and
answers with one line of JSON. It ends when its standard input closes, so a caller that is killed leaves no process
behind to disturb the next measurement.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from trainables.layout import CHECKOUT
from trainables.locks import DeviceLock
from trainables.records.encoding import decode, to_json
from trainables.records.latency import ConditionsRecord, LatencyRecord
from trainables.stages.measuring.machine import Counters, bind, conditions, disturbance, disturbed_by, normal_priority
from trainables.stages.measuring.probes import Probes
from trainables.stages.measuring.timing import EXTENSION, alternate, throughput_ips
from trainables.stages.models.devices import GpuState, measure_others_on_gpu
from trainables.stages.runtimes.base import RUNTIMES, AbsentError, Artifact, Opened
from trainables.stages.runtimes.opening import open_runtime

# Attempts per file if no number is asked for; after the last one the least disturbed is kept and marked, as the machine
# may never be quiet.
ATTEMPTS = 3
# Pause before the second attempt, twice that before the third: processes that start up or shut down are done by then.
PAUSE_S = 0.3
# If a retry is still at least this fraction as disturbed, the noise is permanent: stop retrying.
PASSING = 0.5
# Environment variables through which a trial's process finds NVIDIA's Multi-Process Service.
MPS = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
# Time limit for opening both files: TensorRT builds its engines then.
OPEN_S = 900.0
# Grace period after a measurement's own time: single calls may be slow, and the A-B-B-A round is always finished.
SLACK_S = 120.0


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


class BrokenRoomError(RuntimeError):
    """The measuring process died or did not answer in time; the message ends with its last line of output."""


def measure_apart(job: Job, lease: DeviceLock) -> Measured:
    """Measure in a fresh process while this one holds the lease alone; retry in another process if it was disturbed.

    The process starts up under the shared lease: that would disturb another measurement, but trainings need not pause
    for it. TensorRT starts up under the lease alone, because it times kernels to choose those of its engine. There are
    at most `job.attempts`, or two if the second is no quieter. If all were disturbed, the least disturbed is returned,
    with the reason.

    Raises:
        AbsentError: if the runtime cannot be used on this machine.
        BrokenRoomError: if the process died.
    """
    tries: list[Measured] = []
    alone_s = 0.0
    for attempt in range(job.attempts):
        time.sleep(attempt * PAUSE_S)  # none before the first; outside the lease, so that others can work
        with _Room(job) as room:
            with lease.alone() if job.runtime == "tensorrt" else lease.shared():
                room.wait_until_ready()
            with lease.alone():
                began = time.monotonic()
                tries.append(room.measure())
                alone_s += time.monotonic() - began
        if _settled(tries):
            break
    best = min(tries, key=_disturbance)
    candidate = dataclasses.replace(best.candidate, latency_attempts=len(tries), latency_alone_s=alone_s)
    return dataclasses.replace(best, candidate=candidate)


def _settled(tries: Sequence[Measured]) -> bool:
    """Whether another attempt would not help: the last was clean, or the noise is permanent."""
    levels = [_disturbance(measured) for measured in tries[-2:]]
    return levels[-1] == 0 or (len(levels) == 2 and levels[1] >= PASSING * levels[0])


def _disturbance(measured: Measured) -> float:
    seen = measured.candidate.conditions
    return disturbance(seen) if measured.candidate.latency_disturbed and seen else 0.0


class _Room:
    """The measuring process, as its caller controls it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trainables.stages.measuring.clean_room"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(job.threads),
        )

    def __enter__(self) -> "_Room":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # no polite end: it has nothing to save, and the next measurement waits
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # it died with a line unread
                    stream.close()

    def wait_until_ready(self) -> None:
        """Send the job and wait until both files are open."""
        self._send(json.dumps(dataclasses.asdict(self._job), default=str))
        self._receive(OPEN_S)

    def measure(self) -> Measured:
        """Start the measurement and wait for its result."""
        self._send("go")
        limit = (1 + EXTENSION) * self._job.seconds + SLACK_S
        return decode(Measured, self._receive(limit), where="the measuring process")

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead; `_receive` then raises with the reason
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _receive(self, limit_s: float) -> dict[str, Any]:
        """Wait for the next line and decode it.

        Raises:
            AbsentError: if the process says that the runtime cannot be used here.
            BrokenRoomError: if the process dies, or says nothing for `limit_s` seconds.
        """
        assert self._process.stdout is not None
        # `readline` has no time limit; killing the process ends it with an empty line.
        timer = threading.Timer(limit_s, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise BrokenRoomError(self._describe_end())
        answer: dict[str, Any] = json.loads(line)
        if "absent" in answer:
            raise AbsentError(answer["absent"])
        return answer

    def _describe_end(self) -> str:
        """How the process ended, and the last line it wrote to standard error."""
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        how = f"with code {code}" if code >= 0 else f"by signal {-code}"
        return f"the measuring process ended {how}: {said[-1]}"


def _environment(threads: int) -> dict[str, str]:
    """This process's environment, with every library's thread count fixed and this package on the path."""
    fixed = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    ours = {name: value for name, value in os.environ.items() if name not in MPS}  # users of the file have no MPS
    return {**ours, **fixed, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"}


def _measure(job: Job, probes: Probes, candidate: Opened, reference: Opened, wide: Opened | None) -> Measured:
    """Time both files, and read the machine's counters before and after."""
    cores = bind(job.threads)
    on_gpu = RUNTIMES[job.runtime].device == "cuda"
    gpu_others_share = measure_others_on_gpu() if on_gpu else None
    before = Counters.now()
    took = alternate(candidate.runner, reference.runner, seconds=job.seconds, probes=probes, threads=job.threads)
    gpu = GpuState.now() if on_gpu else None  # read at once: throttling ends within moments
    seen = conditions(before, Counters.now(), cores, gpu=gpu, gpu_others_share=gpu_others_share)
    return Measured(
        candidate=_judge(took.candidate, seen, took.candidate_conditions),
        reference=_judge(took.reference, seen, took.reference_conditions),
        ratio=took.ratio,
        ratio_half_width=took.ratio_half_width,
        throughput_ips=throughput_ips(wide.runner, seconds=job.seconds / 10) if wide else None,
    )


def _judge(latency: LatencyRecord, machine: ConditionsRecord, probed: Mapping[str, float]) -> LatencyRecord:
    """Add the conditions; what came from outside outranks what the file's own blocks say."""
    fields: dict[str, Any] = dict(probed)
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


def _end_with_caller() -> None:
    """End this process when the caller's end of its standard input closes."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Run the measuring process: read a job, open its files, measure, answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides
    job = decode(Job, json.loads(sys.stdin.readline()), where="the job")
    with _channel() as channel:
        try:
            opened, probes = _open(job), Probes()
        except AbsentError as error:
            channel.write(json.dumps({"absent": str(error)}) + "\n")
            return 0
        channel.write(json.dumps({"ready": True}) + "\n")
        channel.flush()
        if sys.stdin.readline() != "go\n":
            return 1
        _end_with_caller()
        normal_priority()
        measured = _measure(job, probes, *opened)
        channel.write(json.dumps(json.loads(to_json(measured))) + "\n")
        channel.flush()
        os._exit(0)  # skip a tidy shutdown: the whole node waits for the lease


if __name__ == "__main__":
    raise SystemExit(main())
