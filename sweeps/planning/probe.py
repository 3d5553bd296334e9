"""A few steps of every stage, timed in a folder that is thrown away: what `sweeps.planning.cost` reckons from."""

import math
import resource
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from sweeps.planning.cost import Probe
from sweeps.search.config import SweepConfig
from trainables.layout import STORE, WEIGHTS
from trainables.locks import DeviceLock
from trainables.records.stages import DatasetRecord
from trainables.stages.data.on_device import Images, load_images
from trainables.stages.export.stage import exported, recipe
from trainables.stages.models import placement
from trainables.stages.training.loop import RECALIBRATION_IMAGES
from trainables.stages.training.soft_labels import FILL_BATCH
from trainables.stages.training.student import student
from trainables.stages.training.teacher import teacher
from trainables.stages.workspace import Workspace
from trainables.store.results import Store

Result = TypeVar("Result")
PROBE_STEPS = 6  # the first one of a stage pays for memory and kernels, and is left out
PROBE_VAL_IMAGES = 256


def probe(config: SweepConfig, dataset: DatasetRecord, *, apart: bool) -> Probe:
    """Time a few steps of every stage, in a folder that is thrown away.

    Args:
        apart: in a process of its own. For a GPU: CUDA's context would stay in this one, with half a gigabyte, as long
            as the sweep runs.
    """
    if not apart:
        return _probe(config, dataset)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        return processes.submit(_entered, config, dataset).result()


def _entered(config: SweepConfig, dataset: DatasetRecord) -> Probe:
    placement.enter(config.device, threads=config.cpus)
    return _probe(config, dataset)


def _probe(config: SweepConfig, dataset: DatasetRecord) -> Probe:
    whole = load_images(dataset, config.device)
    count = min(len(whole.train_labels), PROBE_STEPS * config.base.training.batch_size)
    images = whole.few(count, PROBE_VAL_IMAGES)
    threads = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            return _probed(config, dataset, (whole, images), Path(folder))
    finally:
        torch.set_num_threads(threads)
        load_images.cache_clear()  # a GPU's memory is for the trials, who load their own
        placement.give_back()


def _probed(config: SweepConfig, dataset: DatasetRecord, images: tuple[Images, Images], folder: Path) -> Probe:
    base = config.base.on(config.device).replace(
        teacher_epochs=1, student_epochs=1, pretrained=False, student_pretrained=False, kd_loss="kd", alpha=0.9
    )
    device = images[0].mean.device.type
    whole, few = images
    clock = _Clock(device)
    place = _TimedPlace(
        store=Store(folder / STORE),
        data_dir=config.data_dir,
        device=device,
        threads=config.threads,
        lock_dir=folder,
        clock=clock,
    )
    torch.set_num_threads(config.cpus)
    large = _end(teacher(base, dataset, few, place))
    *teacher_steps, _, teacher_check = clock.take()  # between the two the loss is read
    torch.set_num_threads(config.threads)
    small = _end(student(base, dataset, few, large, place))
    *mixed, _, student_check = clock.take()
    batch = base.training.batch_size
    fills = math.ceil(len(few.train_labels) / FILL_BATCH)
    began = time.perf_counter()
    student_bytes = _end(exported(base, dataset, small, recipe(base, dataset, "candidate"), place)).size_bytes
    export_s = time.perf_counter() - began
    scale = _checked_images(whole) / _checked_images(few)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _resident_bytes()
    return Probe(
        teacher_step_s=_warm(teacher_steps),
        student_step_s=_warm(mixed[fills + 1 :]),  # behind the batches of soft labels they are fetched
        labels_batch_s=_warm(mixed[:fills]),
        teacher_check_s=teacher_check * scale,
        student_check_s=student_check * scale,
        export_s=export_s,
        steps=math.ceil(len(whole.train_labels) / batch),
        label_batches=math.ceil(len(whole.train_labels) / FILL_BATCH),
        peak_bytes=peak,
        student_bytes=student_bytes,
        teacher_bytes=(large.folder / WEIGHTS).stat().st_size,
        view_bytes=2 * len(whole.train_labels) * whole.num_classes,
    )


class _Clock(DeviceLock):
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

    def device_lock(self) -> DeviceLock:
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
