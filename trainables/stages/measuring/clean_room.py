"""Measure latency in a clean room: a fresh process bound to its CPUs, with no other work on the node (no torch)."""

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from trainables.files import sha256
from trainables.layout import CHECKOUT, LEASES
from trainables.locks import DeviceLock, without_shares
from trainables.records.encoding import decode
from trainables.stages.measuring.machine import disturbance
from trainables.stages.measuring.probes import Clocks
from trainables.stages.measuring.process import Job, Measured
from trainables.stages.measuring.timing import EXTENSION
from trainables.stages.models.devices.elsewhere import (
    LostError,
    facts_of,
    is_lost,
    last_words,
    persist,
    read_line,
    start,
)
from trainables.stages.models.devices.processor import processor_name
from trainables.stages.models.devices.receiver import FILES
from trainables.stages.runtimes.base import AbsentError, Artifact

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
# The same on another machine, where measurements of other nodes may come first.
QUEUE_S = 900.0
MODULE = "trainables.stages.measuring.process"
CLOCKS_FILE = "clocks.json"


class BrokenRoomError(RuntimeError):
    """The measuring process died or did not answer in time; the message ends with its last line of output."""


def measure_apart(job: Job, lease: DeviceLock) -> Measured:
    """Measure in a fresh process while this one holds the lease alone; retry in another process if it was disturbed.

    The process starts up under the shared lease: that would disturb another measurement, but trainings need not pause
    for it. TensorRT starts up under the lease alone, because it times kernels to choose those of its engine. There are
    at most `job.attempts`, or two if the second is no quieter. If all were disturbed, the least disturbed is returned,
    with the reason.

    Args:
        job: with an address, the process is on that machine, and nobody here pauses.
        lease: that of the machine to measure on, among the processes of this node.

    Raises:
        AbsentError: if the runtime cannot be used on this machine.
        BrokenRoomError: if the process died.
        ValueError: if the machine elsewhere does not answer; the store does not remember that as a failure.
    """
    clocks = Clocks(lease.file(CLOCKS_FILE), _machine(job))
    job = dataclasses.replace(job, usual_clock_ms=clocks.usual_ms())
    tries: list[Measured] = []
    alone_s = 0.0
    for attempt in range(job.attempts):
        time.sleep(attempt * PAUSE_S)  # none before the first; outside the lease, so that others can work
        # first beside trials on other GPUs; again, or if there is but one attempt, beside nothing
        whole_node = attempt > 0 or job.attempts == 1
        with without_shares():
            measured, seconds = persist(job.address, partial(_attempt, job, lease, whole_node=whole_node))
        tries.append(measured)
        alone_s += seconds
        if _settled(tries):
            break
    best = min(tries, key=_disturbance)
    if (seen := best.candidate.conditions) and seen.clock_probe_ms is not None:
        clocks.add(seen.clock_probe_ms)
    candidate = dataclasses.replace(best.candidate, latency_attempts=len(tries), latency_alone_s=alone_s)
    if job.address is None:
        return dataclasses.replace(best, candidate=candidate)
    where = f"{candidate.latency_device} of {facts_of(job.address).name}"
    candidate = dataclasses.replace(candidate, latency_alone_s=0.0, latency_device=where)
    return dataclasses.replace(
        best, candidate=candidate, reference=dataclasses.replace(best.reference, latency_device=where)
    )


def _attempt(job: Job, lease: DeviceLock, *, whole_node: bool) -> tuple[Measured, float]:
    """Measure in one process; returns the seconds for which it had the lease alone, too."""
    with lease.shared() if job.address else contextlib.nullcontext():  # sending files would disturb another one there
        room = _Room(job)
    with room:
        with lease.alone() if job.runtime == "tensorrt" else lease.shared():
            room.wait_until_ready()
        with lease.alone(whole_node=whole_node):
            began = time.monotonic()
            measured = room.measure()
            return measured, time.monotonic() - began


def _machine(job: Job) -> str:
    """The machine whose clock is read, and by what, as long as that is known."""
    if job.address is not None:
        return facts_of(job.address).name
    return f"{platform.node()}, {processor_name()}, numpy {np.__version__}"


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
        if job.address is not None:
            self._job, files = _as_there(job)
            settings = _thread_settings(job.threads)
            self._process = start(job.address, [MODULE, LEASES], files, settings, self._errors)
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
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
        limit = (1 + EXTENSION) * self._job.seconds + SLACK_S + (QUEUE_S if self._job.address else 0)
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
            LostError: the same, if the connection to another machine is why.
        """
        line = read_line(self._process, limit_s)
        if not line:
            raise self._describe_end()
        answer: dict[str, Any] = json.loads(line)
        if "absent" in answer:
            raise AbsentError(answer["absent"])
        return answer

    def _describe_end(self) -> Exception:
        """How the process ended, and the last line it wrote to standard error."""
        code, said = self._process.wait(), last_words(self._errors)
        if self._job.address is not None and is_lost(self._process):
            return LostError(f"it went away during a measurement ({said})")
        how = f"with code {code}" if code >= 0 else f"by signal {-code}"
        return BrokenRoomError(f"the measuring process ended {how}: {said}")


def _as_there(job: Job) -> tuple[Job, dict[str, Path]]:
    """The job with its files as they are named on another machine, and name -> file here."""
    names = {path: f"{sha256(path)}.onnx" for path in (job.candidate.onnx, job.reference.onnx)}
    candidate, reference = (Artifact(onnx=FILES / names[file.onnx]) for file in (job.candidate, job.reference))
    files = {name: path for path, name in names.items()}
    return dataclasses.replace(job, candidate=candidate, reference=reference), files


def _environment(threads: int) -> dict[str, str]:
    """This process's environment, with every library's thread count fixed and this package on the path."""
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    ours = {name: value for name, value in os.environ.items() if name not in MPS}  # users of the file have no MPS
    return {**ours, **_thread_settings(threads), "PYTHONPATH": path}


def _thread_settings(threads: int) -> dict[str, str]:
    fixed = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {**fixed, "OMP_WAIT_POLICY": "PASSIVE"}
