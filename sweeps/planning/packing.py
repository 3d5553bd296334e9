"""Choose how many trials share a GPU, or the cores: measure this sweep's own trials, compare total images/s."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sweeps.cluster.mps import MpsError, mps
from sweeps.display.console import Screen
from sweeps.search.config import SweepConfig
from sweeps.search.devices import AUTO
from sweeps.search.space import values_of
from trainables.config.candidate import TEACHER_ITSELF
from trainables.files import write_text
from trainables.layout import TASK
from trainables.records.encoding import decode, read_json, to_json
from trainables.records.probe import Probed, ProbeTask
from trainables.stages.models.devices.processor import usable_cores

MOST = 16  # trials on one GPU
# Stop adding trials when total images/s grow by less than 5 %.
WORTH = 1.05
# Prefer fewer trials within 3 % of the best total: they leave more memory, and each ends sooner.
AS_GOOD = 0.97
# Memory to allow for a trial, as a multiple of the probe's peak: validation and export need more than training steps.
HEADROOM = 1.1
SECONDS = 5.0  # of training that are measured
READY_S = 600.0  # for all probes to load, compile and warm up
OUT_OF_MEMORY_CODE = 3  # of trainables.stages.training.throughput, which imports torch


@dataclass(frozen=True, kw_only=True)
class Together:
    """A measurement of several trials on one device at once."""

    trials: int
    images_per_s: float
    """Of all trials in total."""
    peak_bytes: int
    """Peak memory of one trial, the largest."""
    device_bytes: int
    """Memory of the device."""
    others_bytes: int = 0
    """What others had of it before the first of these processes came."""


class ProbeError(RuntimeError):
    """A probe's process failed; its last line says why."""


def fits(trials: int, alone: Together) -> bool:
    """Whether so many trials fit into the memory that others leave, each with `HEADROOM` times the peak of one."""
    return trials * HEADROOM * alone.peak_bytes <= alone.device_bytes - alone.others_bytes


def choose(measured: Sequence[Together]) -> int:
    """How many trials to run at once: the fewest within 3 % of the best total images/s that fit into memory.

    `measured` begins with one trial alone, which always fits.
    """
    assert measured and measured[0].trials == 1, measured
    fitting = [measured[0], *(one for one in measured[1:] if fits(one.trials, measured[0]))]
    best = max(one.images_per_s for one in fitting)
    return min(one.trials for one in fitting if one.images_per_s >= AS_GOOD * best)


def search(measure: Callable[[int], Together | None], *, most: int = MOST) -> list[Together]:
    """Measure 1, 2, 4, ... trials, as long as they fit, pay and succeed; then one number in between.

    Args:
        measure: number of trials -> their measurement; None if they ran out of memory.
        most: largest number of trials to try.
    """
    alone = measure(1)
    if alone is None:
        raise ProbeError("one trial alone does not fit into the memory of the device; take a smaller batch_size.")
    found, paying = [alone], True
    while paying and (more := 2 * found[-1].trials) <= most and fits(more, alone):
        if (together := measure(more)) is None:
            break
        found.append(together)
        paying = together.images_per_s >= WORTH * found[-2].images_per_s
    # Throughput peaks near the last number: beyond it if more still paid but did not fit, else before it.
    last = found[-1].trials
    between = last * 3 // 2 if paying else last * 3 // 4
    untried = between not in (one.trials for one in found)
    if untried and between <= most and fits(between, alone) and (together := measure(between)) is not None:
        found.append(together)
    return sorted(found, key=lambda one: one.trials)


def search_cores(measure: Callable[[int], Together | None], cores: int) -> list[Together]:
    """Measure as many trials as get 1, 2, 3, ... cores each, fewest trials first, as long as they fit and pay.

    Args:
        measure: see `search`.
        cores: number of CPU cores for the sweep.
    """
    alone = measure(1)
    if alone is None:
        raise ProbeError("one trial alone does not fit into memory; take a smaller batch_size.")
    found = [alone]
    for trials in sorted({cores // each for each in range(1, cores)} - {1}):
        if not fits(trials, alone) or (one := measure(trials)) is None:
            break
        found.append(one)
        if one.images_per_s < WORTH * found[-2].images_per_s:
            break
    return found


def together(config: SweepConfig, trials: int, *, seconds: float = SECONDS) -> Together | None:
    """Train so many students of the sweep at once on one device, each in its own process; None if memory ran out.

    Where the teacher is a student, too, all are teachers: the largest. On a CPU they share the sweep's cores evenly.
    The data must have been prepared.

    Raises:
        ProbeError: if a process failed for another reason.
    """
    cores = usable_cores()[: max(1, config.devices.cpus // max(1, config.devices.gpus))]
    students = values_of(config.search.space, config.search.base, "student_model")
    student = TEACHER_ITSELF if TEACHER_ITSELF in students else students[0]
    task = ProbeTask(
        device=config.devices.device,
        config=config.search.base.replace(student_model=student).flat(),
        data_dir=config.places.data_dir.resolve(),
        threads=max(1, len(cores) // trials),
        cores=tuple(cores),
        memory_share=1 / trials,
    )
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write_text(folder / TASK, to_json(task))
        running = [_Process(folder, number) for number in range(trials)]
        for process in running:
            stack.callback(process.end)
        if not _ready(running):
            return None
        # Files as signals: all processes count the same seconds, with all others at work.
        (folder / "go").touch()
        time.sleep(seconds)
        (folder / "stop").touch()
        answers = [process.answer() for process in running]
    if None in answers:
        return None
    rows = [answer for answer in answers if answer is not None]
    return Together(
        trials=trials,
        images_per_s=sum(row.images_per_s for row in rows),
        peak_bytes=max(row.peak_bytes for row in rows),
        device_bytes=rows[0].device_bytes,
        others_bytes=min(row.others_bytes for row in rows),
    )


def resolve_shares(config: SweepConfig, screen: Screen) -> SweepConfig:
    """Replace `auto` in `gpus_per_trial` and `cpus_per_trial` by the share that a probe finds best.

    Raises:
        ValueError: if GPUs are to be shared but the sweep has none, or the probe fails.
    """
    if config.devices.gpus_per_trial == AUTO and not config.devices.gpus:
        raise ValueError("gpus_per_trial=auto: it needs --gpus 1 or more; on a CPU take --cpus-per-trial.")

    def measure(trials: int) -> Together | None:
        return together(config, trials)

    if config.devices.gpus_per_trial == AUTO:
        try:
            with mps(config.devices.mps):  # the best number with MPS differs from that without
                trials = _measure_best("gpus_per_trial", lambda: search(measure), "a GPU", screen)
        except MpsError as error:
            raise ValueError(str(error)) from error
        return config.replace(gpus_per_trial=1 / trials)
    if config.devices.cpus_per_trial == AUTO:
        cores = min(config.devices.cpus, len(usable_cores()))
        trials = _measure_best("cpus_per_trial", lambda: search_cores(measure, cores), "the CPU", screen)
        return config.replace(cpus_per_trial=cores // trials)
    return config


def _measure_best(name: str, measure: Callable[[], list[Together]], where: str, screen: Screen) -> int:
    """Measure with a spinner, print what was found, and return the number of trials to run at once."""
    with screen.busy(f"Measuring how many trials share {where} best"):
        try:
            measured = measure()
        except ProbeError as error:
            raise ValueError(f"{name}=auto: {error}") from error
    trials = choose(measured)
    screen.print(f"{AUTO}: {trials} trial{'s' * (trials > 1)} at once on {where}. {describe(measured)}")
    return trials


def prices(config: SweepConfig, *, seconds: float = SECONDS) -> list[str]:
    """Measure what `deterministic` and `compile` cost or gain here: one line for each that is on, as a ratio of times.

    Nothing is measured for a cluster: its nodes may differ from this machine.

    Raises:
        ValueError: if a probe fails.
    """
    if config.devices.address is not None:
        return []
    asked = [name for name in ("deterministic", "compile") if getattr(config.search.base.training, name)]
    return [f"{name}: {_step_time_ratio(config, name, seconds):.2f} x the time of a step here" for name in asked]


def _step_time_ratio(config: SweepConfig, name: str, seconds: float) -> float:
    """Measure the time of a step with a training setting, divided by that without it; compiling is not counted."""
    rates = []
    for on in (False, True):
        base = config.search.base.replace(**{name: on})
        try:
            one = together(config.replace(base=base), 1, seconds=seconds)
        except ProbeError as error:
            raise ValueError(f"{name}=True: {error}") from error
        if one is None:
            raise ValueError(f"{name}=True: a trial does not fit into memory; take a smaller batch_size.")
        rates.append(one.images_per_s)
    return rates[0] / rates[1]


def describe(measured: Sequence[Together]) -> str:
    """The measurements in words, on one line."""
    rates = ", ".join(f"{one.trials}: {one.images_per_s:.0f}" for one in measured)
    return f"Images/s of all by trials at once: {rates}; one takes {measured[0].peak_bytes / 1e6:.0f} MB."


class _Process:
    """The process of one probe, a student that trains in `folder`."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number = folder, number
        self._log = (folder / f"{number}.log").open("w+")
        command = [sys.executable, "-m", "trainables.stages.training.throughput", str(folder), str(number)]
        # a pipe that nobody writes to: it closes when this process dies, and the probe ends
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self._log, stderr=subprocess.STDOUT)

    def ready(self) -> bool:
        return (self._folder / f"{self._number}.ready").exists()

    def over(self) -> bool:
        return self._process.poll() is not None

    def answer(self) -> Probed | None:
        """Wait for its result; None if it ran out of memory."""
        code = self._process.wait(READY_S)
        if code in (OUT_OF_MEMORY_CODE, -signal.SIGKILL):  # the kernel kills a process when memory runs out
            return None
        if code:
            self._log.seek(0)
            lines = self._log.read().strip().splitlines() or [f"exit code {code}"]
            if "DefaultCPUAllocator" in lines[-1]:  # PyTorch's message when the CPU's memory ran out
                return None
            raise ProbeError(f"the probe failed: {lines[-1]}")
        path = self._folder / f"{self._number}.json"
        return decode(Probed, read_json(path), where=path)

    def end(self) -> None:
        if not self.over():
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._log.close()


def _ready(running: Sequence[_Process]) -> bool:
    """Wait until all probes are ready; False if one ran out of memory."""
    until = time.monotonic() + READY_S
    while not all(process.ready() for process in running):
        for process in running:
            if process.over() and process.answer() is None:
                return False
        if time.monotonic() > until:
            raise ProbeError(f"the probe was not ready after {READY_S:.0f} s.")
        time.sleep(0.05)
    return True
