"""What a sweep will cost, known before it is spent: time, memory and disk from a probe of a few steps."""

import math
import resource
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from sweeps.command import START_S, in_words
from sweeps.config import SweepConfig
from sweeps.samplers import STUDENT_PARAMS
from sweeps.space import size
from trainables.records import DatasetRecord
from trainables.stages.exported import exported, recipe
from trainables.stages.lease import DeviceLease
from trainables.stages.soft_labels import FILL_BATCH
from trainables.stages.student import student
from trainables.stages.teacher import teacher
from trainables.stages.tensors import Images, load_images
from trainables.stages.training import RECALIBRATION_IMAGES
from trainables.stages.workspace import Workspace
from trainables.store import Store

Result = TypeVar("Result")
PROBE_STEPS = 6  # the first one of a stage pays for memory and kernels, and is left out
PROBE_VAL_IMAGES = 256


@dataclass(frozen=True)
class Range:
    """A number and how far it may be off."""

    low: float
    expected: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Range":
        """Fastest, median and slowest."""
        return cls(min(seconds), median(seconds), max(seconds))

    def __add__(self, other: "Range | float") -> "Range":
        plus = other if isinstance(other, Range) else Range(other, other, other)
        return Range(self.low + plus.low, self.expected + plus.expected, self.high + plus.high)

    def __mul__(self, factor: float) -> "Range":
        return Range(self.low * factor, self.expected * factor, self.high * factor)

    def __str__(self) -> str:
        return f"{in_words(self.expected)} ({in_words(self.low)} to {in_words(self.high)})"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Seconds that steps took with the sweep's threads, alone on the machine, and how many the real stages have."""

    teacher_step_s: Sequence[float]
    student_step_s: Sequence[float]
    """Training with soft labels."""
    labels_batch_s: Sequence[float]
    """The teacher's inference on `FILL_BATCH` images."""
    teacher_check_s: float
    """BatchNorm re-estimation and validation at an epoch's end."""
    student_check_s: float
    export_s: float
    steps: int
    """An epoch."""
    label_batches: int
    """A view."""
    peak_bytes: int
    """Most CUDA memory allocated, or this process's resident memory."""
    student_bytes: int
    """ONNX file of the dense student."""
    teacher_bytes: int
    view_bytes: int
    """Soft labels of one view."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What an earlier sweep has left in the store, and this one in its folder."""

    trials: int = 0
    """Of this sweep, that need no more work."""
    teacher: bool = False
    views: int = 0
    """Of soft labels."""
    views_needed: int = 0
    students: int = 0
    """Of the first trials' `first_students` different ones."""
    first_students: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a sweep."""

    concurrency: int
    trials: int
    """To run."""
    students: float
    """Expected to be trained."""
    teacher_s: Range
    labels_s: Range
    trial_s: Range
    """One whole trial that finds no student in the store."""
    alone_s: float
    """Of it, measuring, while nobody else uses the device."""
    total_s: Range
    memory_bytes: int
    """A trial at its peak."""
    trial_bytes: int
    disk_bytes: int


def distinct_students(space: Mapping[str, Any], trials: float) -> float:
    """Expected number of different students among different trials drawn evenly from a space.

    With M students of P prunings each, and n trials: M (1 - C(MP - P, n) / C(MP, n)). M is infinite where a
    student's parameter is continuous: then every trial has a student of its own.
    """
    students = size({name: values for name, values in space.items() if name in STUDENT_PARAMS})
    everything = size(space)
    if not math.isfinite(students):
        return trials
    if not math.isfinite(everything):
        return float(students * (1 - (1 - 1 / students) ** trials))
    others = everything - everything / students
    if trials > others:
        return float(students)
    return float(students * (1 - math.exp(_log_choose(others, trials) - _log_choose(everything, trials))))


def estimate(probe: Probe, config: SweepConfig, hits: Hits) -> Plan:
    """The cost of what is missing of a sweep.

    A trial is its student's epochs, recovery at the dense student's cost (pruned, it is a little cheaper), two exports
    and two measurements. Trials run at once, measurements one after the other. Low: the probe's fastest steps and only
    as many students as are expected to be different; high: the slowest steps, and every trial its own student.
    """
    base = config.base
    most = size(config.space)
    trials = int(max(0, min(config.trials, most) - hits.trials))
    at_once = max(1, min(config.concurrency, trials))
    alone_s = 4 * base.measure.latency_seconds  # shape and file, beside the teacher's file each, warm-up included
    fixed_s = 2 * probe.export_s
    epoch = Range.of(probe.student_step_s) * probe.steps + probe.student_check_s
    recovered = epoch * base.prune.recovery_epochs + fixed_s
    teacher = Range.of(probe.teacher_step_s) * probe.steps + probe.teacher_check_s
    teacher_s = teacher * base.teacher.teacher_epochs + fixed_s + alone_s / 2
    missing = hits.views_needed - hits.views
    labels_s = Range.of(probe.labels_batch_s) * probe.label_batches * missing
    fresh = max(1.0, trials * (1 - config.reuse_probability)) if trials else 0.0
    expected = max(0.0, distinct_students(config.space, fresh) - hits.students)
    taught = epoch * base.student.student_epochs
    work = Range(taught.low * expected, taught.expected * expected, taught.high * trials) + recovered * trials
    teacher_s = teacher_s * (not hits.teacher)
    trial_bytes = 4 * probe.student_bytes  # student, pruned student, ONNX and TorchScript
    return Plan(
        concurrency=config.concurrency,
        trials=trials,
        students=expected,
        teacher_s=teacher_s,
        labels_s=labels_s,
        trial_s=taught + recovered + alone_s,
        alone_s=alone_s,
        total_s=(work * (1 / at_once) + alone_s * trials + labels_s + teacher_s + START_S) * bool(trials),
        memory_bytes=probe.peak_bytes,
        trial_bytes=trial_bytes,
        disk_bytes=trials * trial_bytes + missing * probe.view_bytes + (not hits.teacher) * 3 * probe.teacher_bytes,
    )


def probe(config: SweepConfig, dataset: DatasetRecord) -> Probe:
    """Time a few steps of every stage in this process, in a folder that is thrown away."""
    whole = load_images(dataset, "cuda" if config.gpus else "cpu")
    count = min(len(whole.train_labels), PROBE_STEPS * config.base.training.batch_size)
    images = replace(
        whole,
        train_images=whole.train_images[:count],
        train_labels=whole.train_labels[:count],
        val_images=whole.val_images[:PROBE_VAL_IMAGES],
        val_labels=whole.val_labels[:PROBE_VAL_IMAGES],
    )
    threads = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            return _probed(config, dataset, (whole, images), Path(folder))
    finally:
        torch.set_num_threads(threads)


def _probed(config: SweepConfig, dataset: DatasetRecord, images: tuple[Images, Images], folder: Path) -> Probe:
    base = config.base.replace(
        teacher_epochs=1, student_epochs=1, pretrained=False, student_pretrained=False, kd_loss="kd", alpha=0.9
    )
    device = images[0].mean.device.type
    whole, few = images
    clock = _Clock(device)
    place = _TimedPlace(
        store=Store(folder / "store"),
        data_dir=config.data_dir,
        device=device,
        threads=config.threads,
        lease_dir=folder,
        clock=clock,
    )
    torch.set_num_threads(config.cpus)
    large = _end(teacher(base, dataset, few, place))
    *teacher_steps, teacher_check = clock.take()
    torch.set_num_threads(config.threads)
    small = _end(student(base, dataset, few, large, place))
    *mixed, student_check = clock.take()
    batch = base.training.batch_size
    fills = math.ceil(len(few.train_labels) / FILL_BATCH)
    began = time.perf_counter()
    student_bytes = _end(exported(base, dataset, small, recipe(base, dataset, "candidate"), place)).size_bytes
    export_s = time.perf_counter() - began
    scale = _checked_images(whole) / _checked_images(few)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _resident_bytes()
    return Probe(
        teacher_step_s=_warm(teacher_steps),
        student_step_s=_warm(mixed[fills:]),
        labels_batch_s=_warm(mixed[:fills]),
        teacher_check_s=teacher_check * scale,
        student_check_s=student_check * scale,
        export_s=export_s,
        steps=math.ceil(len(whole.train_labels) / batch),
        label_batches=math.ceil(len(whole.train_labels) / FILL_BATCH),
        peak_bytes=peak,
        student_bytes=student_bytes,
        teacher_bytes=(large.folder / "weights.pt").stat().st_size,
        view_bytes=2 * len(whole.train_labels) * whole.num_classes,
    )


class _Clock(DeviceLease):
    """A lease that everybody gets at once and that takes the time of what is done with it."""

    def __init__(self, device: str) -> None:
        self._device, self._seconds = device, list[float]()

    @contextmanager
    def shared(self) -> Iterator[None]:
        self._settle()
        started = time.perf_counter()
        yield
        self._settle()
        self._seconds.append(time.perf_counter() - started)

    def take(self) -> list[float]:
        """The seconds since the last `take`."""
        taken, self._seconds = self._seconds, []
        return taken

    def _settle(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True, kw_only=True)
class _TimedPlace(Workspace):
    clock: _Clock

    def lease(self) -> DeviceLease:
        return self.clock


def _end(stage: Generator[Any, None, Result]) -> Result:
    while True:
        try:
            next(stage)
        except StopIteration as end:
            result: Result = end.value
            return result


def _warm(seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(seconds[1:] or seconds)


def _checked_images(images: Images) -> int:
    return min(RECALIBRATION_IMAGES, len(images.train_labels)) + len(images.val_labels)


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _log_choose(n: float, k: float) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
