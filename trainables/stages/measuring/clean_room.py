"""A latency in a clean room: a fresh process, bound to its CPUs, while nobody else computes on this node (no torch).

The measuring process reads a job as one line of JSON, opens both files, says `ready`, waits for `go`, measures and
answers with one line of JSON. It ends when its standard input does: a caller that is killed leaves nothing behind
that would disturb the next measurement.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from trainables.layout import CHECKOUT
from trainables.locks import DeviceLock
from trainables.records.encoding import decode, to_json
from trainables.records.latency import LatencyRecord
from trainables.stages.measuring.machine import Counters, bind, conditions, contamination, disturbance, normal_priority
from trainables.stages.measuring.timing import EXTENSION, alternate, throughput_ips
from trainables.stages.models.devices import GpuState, others_on_gpu
from trainables.stages.runtimes.base import RUNTIMES, AbsentError, Artifact, Opened
from trainables.stages.runtimes.opening import open_runtime

ATTEMPTS = 3
"""Measurements of one file before it is taken as it is and marked: others may never be quiet."""
PAUSE_S = 0.3
"""Before the second attempt, twice that before the third: what starts up, or shuts down, is through by then."""
PASSING = 0.5
"""An attempt that is at least this much of the one before as disturbed meets others that are here to stay."""
MPS = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
"""Where a trial's process finds NVIDIA's Multi-Process Service."""
OPEN_S = 900.0
"""For opening both files; TensorRT builds its engines then."""
SLACK_S = 120.0
"""For a measurement beyond its own time: a call may take long, and one A B B A is always finished."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to measure."""

    candidate: Artifact
    reference: Artifact
    runtime: str
    """Of `backends.RUNTIMES`."""
    threads: int
    """CPU threads."""
    seconds: float
    """Time for timing both, at most, four times that for calls too slow for 8 blocks; warm-up comes before."""
    reference_runtime: str | None = None
    """None takes the same."""
    reference_own_ms: float | None = None
    """The reference's own p50; what it takes beside the candidate must be near that. None if nobody knows it."""
    batch: int = 1
    """Images a call."""
    throughput_batch: int | None = None
    """Images a call of the candidate whose throughput is measured too; None leaves that out."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came out."""

    candidate: LatencyRecord
    reference: LatencyRecord
    throughput_ips: float | None
    """Images a second in calls of `throughput_batch` images."""


class BrokenRoomError(RuntimeError):
    """The measuring process died or fell silent; the message ends with what it said last."""


def measure_apart(job: Job, lease: DeviceLock) -> Measured:
    """Measure in a fresh process while this one holds the lease alone; again, in another one, if others disturbed.

    Start-up happens under the shared lease: it would disturb who measures, but nobody needs to pause for it. TensorRT's
    is done alone: it chooses the engine's kernels by their times, for good. Of disturbed attempts, three at most and
    two where nothing changes, the least disturbed is returned, and says why.

    Raises:
        AbsentError: if the runtime cannot be used on this machine.
        BrokenRoomError: if the process died.
    """
    tries: list[Measured] = []
    alone_s = 0.0
    for attempt in range(ATTEMPTS):
        time.sleep(attempt * PAUSE_S)
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
    """Whether another attempt would tell nothing more."""
    levels = [_disturbance(measured) for measured in tries[-2:]]
    return levels[-1] == 0 or (len(levels) == 2 and levels[1] >= PASSING * levels[0])


def _disturbance(measured: Measured) -> float:
    seen = measured.candidate.conditions
    return disturbance(seen) if measured.candidate.latency_contaminated and seen else 0.0


class _Room:
    """The measuring process, seen from outside."""

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
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # it died with a line unread
                    stream.close()

    def wait_until_ready(self) -> None:
        """Return when both files are open."""
        self._say(json.dumps(dataclasses.asdict(self._job), default=str))
        self._hear(OPEN_S)

    def measure(self) -> Measured:
        """Have it measure."""
        self._say("go")
        limit = (1 + EXTENSION) * self._job.seconds + SLACK_S
        return decode(Measured, self._hear(limit), where="the measuring process")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead: hearing nothing tells why
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _hear(self, limit_s: float) -> dict[str, Any]:
        """The next line, as the mapping that it is."""
        assert self._process.stdout is not None
        timer = threading.Timer(limit_s, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise BrokenRoomError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "absent" in answer:
            raise AbsentError(answer["absent"])
        return answer

    def _last_words(self) -> str:
        """How the process ended."""
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        how = f"with code {code}" if code >= 0 else f"by signal {-code}"
        return f"the measuring process ended {how}: {said[-1]}"


def _environment(threads: int) -> dict[str, str]:
    """Ours, with every library's threads fixed and this package to be found."""
    fixed = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    ours = {name: value for name, value in os.environ.items() if name not in MPS}  # who ships the file has no MPS
    return {**ours, **fixed, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"}


def _measure(job: Job, candidate: Opened, reference: Opened, wide: Opened | None) -> Measured:
    """Time both, and look at the machine before and after."""
    cores = bind(job.threads)
    on_gpu = RUNTIMES[job.runtime].device == "cuda"
    gpu_others_share = others_on_gpu() if on_gpu else None
    before = Counters.now()
    ours, theirs = alternate(candidate.runner, reference.runner, seconds=job.seconds)
    gpu = GpuState.now() if on_gpu else None  # first: throttling passes within moments
    own = job.reference_own_ms
    seen = conditions(
        before,
        Counters.now(),
        cores,
        drift=None if own is None else theirs.latency_p50_ms / own - 1,
        gpu=gpu,
        gpu_others_share=gpu_others_share,
    )
    why = contamination(seen)
    return Measured(
        candidate=dataclasses.replace(ours, conditions=seen, latency_contaminated=why),
        reference=dataclasses.replace(theirs, conditions=seen, latency_contaminated=why),
        throughput_ips=throughput_ips(wide.runner, seconds=job.seconds / 4) if wide else None,
    )


def _open(job: Job) -> tuple[Opened, Opened, Opened | None]:
    """Candidate and reference, and the candidate for many images a call."""
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
    """What was standard output, for us alone: libraries that print, print to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        yield channel


def _end_with_caller() -> None:
    """End this process when nobody holds the other end of its standard input any more."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """The measuring process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides
    job = decode(Job, json.loads(sys.stdin.readline()), where="the job")
    with _channel() as channel:
        try:
            opened = _open(job)
        except AbsentError as error:
            channel.write(json.dumps({"absent": str(error)}) + "\n")
            return 0
        channel.write(json.dumps({"ready": True}) + "\n")
        channel.flush()
        if sys.stdin.readline() != "go\n":
            return 1
        _end_with_caller()
        normal_priority()
        measured = _measure(job, *opened)
        channel.write(json.dumps(json.loads(to_json(measured))) + "\n")
        channel.flush()
        os._exit(0)  # at once: nobody needs a tidy shutdown, and everybody waits for the lease


if __name__ == "__main__":
    raise SystemExit(main())
