"""Prune the student, in one cut or several, and recover accuracy after each cut by epochs of distillation."""

import dataclasses
import shutil
from pathlib import Path

import torch
from torch import nn

from trainables.config.candidate import Candidate
from trainables.files import whole_archive
from trainables.records.stages import EpochRecord, ModelRecord
from trainables.stages.models.inspection import count
from trainables.stages.models.placement import move
from trainables.stages.models.stored import load_model
from trainables.stages.models.weights import load_weights, save_weights
from trainables.stages.pruning.channels import widths
from trainables.stages.pruning.cuts import cut, key_parts, plan_cut, write_plan
from trainables.stages.pruning.methods import masks
from trainables.stages.training.lessons import Distillation
from trainables.stages.training.loop import Loop, recalibrate
from trainables.stages.training.stage import Curve, Epochs, Made, fit, obtain_model
from trainables.stages.workspace import Bench
from trainables.store.results import Key, stage_key

VERSION = 5


def recovery_key(candidate: Candidate, student: ModelRecord, *, channel_ratio: float) -> Key:
    """The store key of this candidate's pruned and recovered student."""
    return stage_key(
        "recovery",
        version=VERSION,
        parents=[student.key],
        channel_ratio=channel_ratio,
        # the key of a student says how it is taught; the teacher's does not, when it is the student
        **(candidate.teaching_key() if candidate.cuts_teacher else {}),
        **key_parts(candidate.prune),
    )


def recover(bench: Bench, teacher: ModelRecord, student: ModelRecord, *, channel_ratio: float) -> Epochs:
    """Prune the student and train what is left, or find the result in the store; yield the recovery epochs.

    Zeroed weights stay zero: masks are applied again after every step. Ratio 0 keeps every weight and still trains the
    recovery epochs, so that all candidates of a sweep get the same budget.

    Args:
        channel_ratio: fraction of channels that `structured` removes: `pruning_ratio`, or the ratio that the shape
            stage found for another `pruning_of`.
    """
    candidate = bench.candidate
    key = recovery_key(candidate, student, channel_ratio=channel_ratio)

    def make(folder: Path) -> Made:
        model = load_model(student)
        before = count(model, bench.dataset.image_size)
        cuts = _Cuts(bench, teacher, student, channel_ratio, widths(model))
        curve = yield from cuts.make(model, folder)
        config, dataset = candidate.prune, bench.dataset
        write_plan(model, before, config, dataset, folder, dense=cuts.dense, channel_ratio=channel_ratio)
        return model, curve

    return obtain_model(bench, key, candidate.network, make)


@dataclasses.dataclass(frozen=True)
class _Cuts:
    """The cuts of one student, each followed by its recovery epochs."""

    bench: Bench
    teacher: ModelRecord
    student: ModelRecord
    channel_ratio: float
    dense: dict[str, int]

    def make(self, model: nn.Module, folder: Path) -> Curve:
        """Cut and recover, once or in turn; yield the epochs, numbered consecutively."""
        prune = self.bench.candidate.prune
        steps = prune.pruning_steps
        curve: list[EpochRecord] = []
        for step, epochs in enumerate(prune.epochs_of_cuts(), 1):
            # the last cut keeps its state in the folder itself, where interrupted runs with a single cut have it
            here = folder if step == steps else folder / f"cut{step}"
            here.mkdir(exist_ok=True)
            self._cut(model, step, folder / f"cut{step}.pt" if steps > 1 else None)
            epochs_of_step = self._recover(model, step, epochs, here, len(curve))
            curve += yield from _renumber(epochs_of_step, len(curve), prune.recovery_epochs)
        # the store keeps this folder: states that only serve resuming would multiply its size
        for step in range(1, steps + 1):
            shutil.rmtree(folder / f"cut{step}", ignore_errors=True)
            (folder / f"cut{step}.pt").unlink(missing_ok=True)
        return tuple(curve)

    def _cut(self, model: nn.Module, step: int, kept: Path | None) -> None:
        """Cut, or load the cut weights from `kept`: gradients on a GPU may select other channels the second time."""
        if kept is not None and whole_archive(kept):
            load_weights(model, kept)
            return
        bench, prune = self.bench, self.bench.candidate.prune
        model.to("cpu").to(memory_format=torch.contiguous_format)
        plan = None
        if prune.shape_needs_weights and prune.pruning_steps == 1:  # found already, to measure the shape
            plan = plan_cut(bench, self.student, channel_ratio=self.channel_ratio)
        with bench.place.device_lock().shared():
            cut(model, prune, bench, channel_ratio=self.channel_ratio, dense=self.dense, step=step, plan=plan)
        if kept is not None:
            save_weights(model, kept)

    def _recover(self, model: nn.Module, step: int, epochs: int, folder: Path, done: int) -> Curve:
        images, candidate = self.bench.images, self.bench.candidate
        # before the masks, which must be on the weights' device
        move(model, images.mean.device, image_size=images.image_size)
        loop = Loop(
            stage="recovery" if step == 1 else f"recovery-{step}",
            epochs=epochs,
            learning_rate=candidate.student.learning_rate * candidate.prune.recovery_learning_rate_factor,
            training=candidate.training,
            augment=candidate.augment,
            first_view=candidate.student.student_epochs + done,
        )
        zeros = masks(model, candidate.prune.pruning_method)
        curve = yield from fit(self.bench, model, loop, Distillation.of(self.bench, self.teacher, loop), folder, zeros)
        if not curve:  # no epoch has re-estimated BatchNorm since the cut
            recalibrate(model, loop, images)
        return curve


def _renumber(part: Curve, done: int, epochs: int) -> Curve:
    """Pass on the epochs of a part, renumbered as epochs of the whole stage."""
    while True:
        try:
            record = next(part)
        except StopIteration as end:
            # epochs of an earlier process are not yielded again, but belong to the curve
            return tuple(_as_recovery(record, done, epochs) for record in end.value)
        yield _as_recovery(record, done, epochs)


def _as_recovery(record: EpochRecord, done: int, epochs: int) -> EpochRecord:
    return dataclasses.replace(record, stage="recovery", epoch=done + record.epoch, epochs=epochs)
