"""Time a few steps of every stage in a temporary folder: the input of `sweeps.planning.cost`."""

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Event

import torch
from torch import nn

from sweeps.planning.cost import Probe
from sweeps.search.config import Search, SweepConfig
from sweeps.search.sampling.first_trials import average_cut
from sweeps.search.space import values_of
from trainables.config.candidate import Candidate
from trainables.locks import end_with_caller
from trainables.records.stages import DatasetRecord
from trainables.stages.data.on_device import Images, load_images
from trainables.stages.export.stage import parity_images
from trainables.stages.export.writer import export
from trainables.stages.models import placement
from trainables.stages.models.devices import accelerator
from trainables.stages.models.devices.processor import usable_cores
from trainables.stages.models.stored import build_for
from trainables.stages.pruning.methods import prune
from trainables.stages.training.lessons import Labels, LogitsAtHand
from trainables.stages.training.loop import RECALIBRATION_IMAGES, Trainer
from trainables.stages.training.soft_labels import FILL_BATCH, logits_of
from trainables.stages.training.student import student_loop
from trainables.stages.training.teacher import teacher_loop

PROBE_STEPS = 6  # the first step of a stage allocates memory and loads kernels; it is left out
PROBE_VAL_IMAGES = 256


def probe(config: SweepConfig, dataset: DatasetRecord, *, apart: bool) -> Probe:
    """Time a few steps of every stage, in a temporary folder.

    Args:
        apart: whether in a process of its own. Needed for a GPU: in this process, CUDA's context would hold half a
            gigabyte as long as the sweep runs.
    """
    if not apart:
        return _probe(config, dataset)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        return processes.submit(_probe_in_child, config, dataset).result()


def _probe_in_child(config: SweepConfig, dataset: DatasetRecord) -> Probe:
    parent = parent_process()
    assert parent is not None
    end_with_caller(parent.sentinel)
    placement.set_up_process(config.devices.device, threads=config.devices.cpus)
    return _probe(config, dataset)


def _probe(config: SweepConfig, dataset: DatasetRecord) -> Probe:
    whole = load_images(dataset, config.devices.device)
    count = min(len(whole.train_labels), PROBE_STEPS * config.search.base.training.batch_size)
    images = whole.take_first(count, PROBE_VAL_IMAGES)
    threads = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            return _time_stages(config, dataset, (whole, images), Path(folder))
    finally:
        torch.set_num_threads(threads)
        load_images.cache_clear()  # a GPU's memory is for the trials, which load the images themselves
        placement.release_memory()


def _time_stages(config: SweepConfig, dataset: DatasetRecord, images: tuple[Images, Images], folder: Path) -> Probe:
    whole, few = images
    device, devices = whole.mean.device.type, config.devices
    # No downloads, and a loss that needs soft labels, whatever the sweep asks for: time the most expensive case.
    once = {"pretrained": False, "student_pretrained": False, "teacher_epochs": 1, "student_epochs": 1}
    base = config.search.base
    students = values_of(config.search.space, base, "student_model")
    usual = {"kd_loss": "kd", "alpha": 0.9, "pruning_ratio": 0.5}
    candidates = [
        base.replace(**once, **usual, student_model=name).resolve(dataset, device=device) for name in students
    ]
    candidate = candidates[0]
    smoothing = candidate.training.label_smoothing
    teacher = build_for(candidate.teacher.teacher_model, dataset)
    clock = _Clock(whole.mean.device)
    torch.set_num_threads(devices.cpus)  # the teacher trains alone, with all cores
    trainer = Trainer(teacher, teacher_loop(candidate), few.labelled(), Labels(smoothing))
    teacher_steps, teacher_check = clock.steps(trainer.steps(1)), clock.time(trainer.check)
    torch.set_num_threads(devices.threads)
    lesson = LogitsAtHand(candidate.student, few, label_smoothing=smoothing)
    lesson.logits_NC = logits_of(teacher.eval(), few, candidate.augment, candidate.training, view=0, turn=clock.turn)
    student_steps: dict[str, tuple[float, ...]] = {}
    checks, exports, sizes = dict[str, float](), dict[str, float](), list[int]()
    # validation is timed on a few images: scaled to all of them
    scale = _checked_images(whole) / _checked_images(few)
    teacher_scale = _checked_images(whole.labelled()) / _checked_images(few.labelled())
    for name, candidate in zip(students, candidates, strict=True):
        student = average_student(candidate, config.search, dataset)
        loop = replace(student_loop(candidate), epochs=1)
        trainer, *others = (
            Trainer(copy.deepcopy(student), loop, few, copy.copy(lesson)) for _ in range(_trials_here(config))
        )
        with _training(others):
            student_steps[name] = _warm(clock.steps(trainer.steps(1)))
            checks[name] = clock.time(trainer.check) * scale
        began = time.perf_counter()
        sizes.append(_export(student, candidate, dataset, folder))
        exports[name] = time.perf_counter() - began
    peak = accelerator.peak_bytes(whole.mean.device, kept=False)
    return Probe(
        teacher_step_s=_warm(teacher_steps),
        student_step_s=student_steps,
        labels_batch_s=_warm(clock.turns),
        teacher_check_s=teacher_check * teacher_scale,
        student_check_s=checks,
        export_s=exports,
        teacher_steps=math.ceil(len(whole.labelled().train_labels) / candidate.training.batch_size),
        steps=math.ceil(len(whole.train_labels) / candidate.training.batch_size),
        label_batches=math.ceil(len(whole.train_labels) / FILL_BATCH),
        peak_bytes=peak,
        student_bytes=max(sizes),
        teacher_bytes=_weight_bytes(teacher),
        view_bytes=2 * len(whole.train_labels) * whole.num_classes,  # FP16: two bytes per logit
    )


def _trials_here(config: SweepConfig) -> int:
    """How many trials share this machine's processor; 1 if a GPU does the work, as `packing` times those together."""
    devices = config.devices
    if devices.gpus:
        return 1
    return max(1, min(devices.concurrency, len(usable_cores()) // devices.threads))


@contextmanager
def _training(trainers: Sequence[Trainer]) -> Iterator[None]:
    """Train these in threads meanwhile: a step beside others takes another time than one alone."""
    over = Event()

    def train(trainer: Trainer) -> None:
        while not over.is_set():
            for _ in trainer.steps(1):
                if over.is_set():
                    return

    with ThreadPoolExecutor(max(1, len(trainers))) as threads:
        running = [threads.submit(train, trainer) for trainer in trainers]
        try:
            yield
        finally:
            over.set()
    for done in running:
        done.result()


def average_student(candidate: Candidate, search: Search, dataset: DatasetRecord) -> nn.Module:
    """The network that a trial trains: dense, but the teacher as a student has the mean MACs of the first cuts."""
    student = build_for(candidate.network, dataset)
    ratio = average_cut(search.space, search.base) if candidate.cuts_teacher else 0.0
    if ratio > 0:
        prune(
            student,
            method="structured",
            ratio=ratio if candidate.prune.pruning_of == "channels" else 1 - math.sqrt(1 - ratio),
            image_size=dataset.image_size,
            num_classes=dataset.num_classes,
            ignore=candidate.prune.prune_ignore,
            must_remove=False,
        )
    return student


def _export(student: nn.Module, candidate: Candidate, dataset: DatasetRecord, folder: Path) -> int:
    """Write the student's files as a trial does; returns the size of the ONNX file in bytes."""
    record = export(
        student.to("cpu").to(memory_format=torch.contiguous_format).eval(),
        mean=dataset.mean,
        std=dataset.std,
        image_size=dataset.image_size,
        class_names=dataset.class_names,
        recipe=candidate.recipe(),
        parity_images=parity_images(dataset),
        opset=candidate.export.opset,
        folder=folder,
        key="probe/0",
    )
    return record.size_bytes


def _weight_bytes(model: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())


class _Clock:
    """Measures the time of work on a device, and waits until that work is done."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.turns = device, list[float]()
        """Seconds of every `turn` so far."""

    def steps(self, work: Iterator[object]) -> list[float]:
        """Run all steps; returns the seconds of each."""
        taken: list[float] = []
        while True:
            started = time.perf_counter()
            if next(work, None) is None:
                return taken
            self._settle()
            taken.append(time.perf_counter() - started)

    def time(self, work: Callable[[], object]) -> float:
        """Run a call; returns its seconds."""
        started = time.perf_counter()
        work()
        self._settle()
        return time.perf_counter() - started

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Time the work within, and append its seconds to `turns`."""
        started = time.perf_counter()
        yield
        self._settle()
        self.turns.append(time.perf_counter() - started)

    def _settle(self) -> None:
        accelerator.synchronize(self._device)


def _warm(seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(seconds[1:] or seconds)


def _checked_images(images: Images) -> int:
    return min(RECALIBRATION_IMAGES, len(images.train_labels)) + len(images.val_labels)
