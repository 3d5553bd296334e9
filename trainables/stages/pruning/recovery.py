"""The student is pruned, in one cut or several, and recovered after each by epochs of distillation."""

import dataclasses
import shutil
from collections.abc import Generator
from pathlib import Path

import torch
from torch import nn

from trainables.config.candidate import CandidateConfig
from trainables.records.stages import DatasetRecord, EpochRecord, ModelRecord, read_model
from trainables.stages.data.on_device import Images
from trainables.stages.models.inspection import count
from trainables.stages.models.placement import move
from trainables.stages.models.stored import load_model, write_model
from trainables.stages.models.weights import load_weights, save_weights
from trainables.stages.pruning.channels import widths
from trainables.stages.pruning.cuts import cut, key_parts, write_plan
from trainables.stages.pruning.zeros import apply_masks, masks
from trainables.stages.training.lessons import Distillation
from trainables.stages.training.loop import Loop, recalibrate, train
from trainables.stages.workspace import Workspace
from trainables.store.results import Key, stage_key

VERSION = 3

Curve = Generator[EpochRecord, None, tuple[EpochRecord, ...]]


def recovery_key(config: CandidateConfig, student: ModelRecord, *, channel_ratio: float) -> Key:
    """Where the pruned and recovered student of this configuration lies in the store."""
    return stage_key(
        "recovery",
        version=VERSION,
        parents=[student.key],
        channel_ratio=channel_ratio,
        **key_parts(config.prune),
    )


def recovery(
    config: CandidateConfig,
    dataset: DatasetRecord,
    images: Images,
    teacher: ModelRecord,
    student: ModelRecord,
    place: Workspace,
    *,
    channel_ratio: float,
) -> Generator[EpochRecord, None, ModelRecord]:
    """Prune the student and train what is left, or find it in the store; yields the recovery epochs.

    `channel_ratio` is what `structured` removes of the channels: `pruning_ratio`, or what the shape stage found for
    another `pruning_of`.

    Zeroed weights stay zero: the masks are put back after every step. Ratio 0 keeps every weight and still trains
    the recovery epochs, so that all candidates of a sweep get the same budget.
    """
    key = recovery_key(config, student, channel_ratio=channel_ratio)

    def compute(folder: Path) -> Generator[EpochRecord, None, None]:
        model = load_model(student)
        before = count(model, dataset.image_size)
        lesson = Distillation.of(config, dataset, images, teacher, place)
        work = _Work(config, dataset, images, lesson, place, channel_ratio, widths(model))
        curve = yield from work.cuts(model, folder)
        write_plan(model, before, config.prune, dataset, folder)
        write_model(model, folder, key=key, name=config.student.student_model, dataset=dataset, curve=curve)

    return read_model((yield from place.store.obtain(key, compute)))


def shares(epochs: int, steps: int) -> list[int]:
    """Epochs after each cut, as equal as they come; what is left over goes to the last."""
    return [epochs // steps] * (steps - 1) + [epochs - epochs // steps * (steps - 1)]


@dataclasses.dataclass(frozen=True)
class _Work:
    """The cuts of one student."""

    config: CandidateConfig
    dataset: DatasetRecord
    images: Images
    lesson: Distillation
    place: Workspace
    channel_ratio: float
    dense: dict[str, int]

    def cuts(self, model: nn.Module, folder: Path) -> Curve:
        """Cut, recover, cut again; yields the epochs, numbered through."""
        prune = self.config.prune
        steps = prune.canonical().pruning_steps
        curve: list[EpochRecord] = []
        for step, epochs in enumerate(shares(prune.recovery_epochs, steps), 1):
            # the last cut resumes in the folder itself, as a single one always has
            here = folder if step == steps else folder / f"cut{step}"
            here.mkdir(exist_ok=True)
            self._cut(model, step, folder / f"cut{step}.pt" if steps > 1 else None)
            epochs_of_step = self._recover(model, step, epochs, here, len(curve))
            curve += yield from _numbered(epochs_of_step, len(curve), prune.recovery_epochs)
        for step in range(1, steps + 1):
            shutil.rmtree(folder / f"cut{step}", ignore_errors=True)
            (folder / f"cut{step}.pt").unlink(missing_ok=True)
        return tuple(curve)

    def _cut(self, model: nn.Module, step: int, kept: Path | None) -> None:
        """Make the cut, or take it from `kept`: gradients on a GPU need not give the same channels twice."""
        if kept is not None and kept.exists():
            load_weights(model, kept)
            return
        model.to("cpu").to(memory_format=torch.contiguous_format)
        with self.place.device_lock().shared():
            if self.config.prune.pruning_criterion == "taylor":
                model.to(self.images.mean.device)
            ratio = self.channel_ratio
            cut(model, self.config.prune, self.dataset, self.images, channel_ratio=ratio, dense=self.dense, step=step)
            model.to("cpu")
        if kept is not None:
            save_weights(model, kept)

    def _recover(self, model: nn.Module, step: int, epochs: int, folder: Path, done: int) -> Curve:
        move(model, self.images.mean.device, image_size=self.dataset.image_size)  # masks lie where the weights will
        zeros = masks(model, self.config.prune.canonical().pruning_method)
        loop = Loop(
            stage="recovery" if step == 1 else f"recovery-{step}",
            epochs=epochs,
            learning_rate=self.config.student.learning_rate * self.config.prune.recovery_learning_rate_factor,
            training=self.config.training,
            augment=self.config.augment,
            first_view=self.config.student.student_epochs + done,
        )
        turn = self.place.device_lock().shared
        curve = yield from train(
            model, loop, self.images, self.lesson, folder, after_step=lambda: apply_masks(model, zeros), turn=turn
        )
        if not curve:  # nothing has re-estimated BatchNorm since the cut
            recalibrate(model, loop, self.images)
        return curve


def _numbered(part: Curve, done: int, epochs: int) -> Curve:
    """The epochs of a part as epochs of the whole stage."""
    while True:
        try:
            record = next(part)
        except StopIteration as end:
            # those of an earlier process are not yielded again, but belong to the curve
            return tuple(_renamed(record, done, epochs) for record in end.value)
        yield _renamed(record, done, epochs)


def _renamed(record: EpochRecord, done: int, epochs: int) -> EpochRecord:
    return dataclasses.replace(record, stage="recovery", epoch=done + record.epoch, epochs=epochs)
