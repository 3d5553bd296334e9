"""Tune trainables that stop at a network: for searches of one's own over distillation or pruning alone."""

from typing import Any

from trainables.records.stages import ModelRecord
from trainables.stages.export.stage import export_teacher
from trainables.stages.measuring.untrained_shape import measure_shape
from trainables.stages.pruning.recovery import recover
from trainables.stages.training.stage import Epochs
from trainables.stages.training.student import train_student
from trainables.stages.training.teacher import train_teacher
from trainables.stages.workspace import Bench, Workspace
from trainables.trials.base import StageTrial
from trainables.trials.task import TrialTask


class StudentTrial(StageTrial[TrialTask]):
    """Distils one dense student; the teacher is found in the store or made first."""

    def begin(self, task: TrialTask, place: Workspace) -> Epochs:
        """Teacher, then student."""
        bench = Bench.of(task.candidate, place)
        teacher = yield from train_teacher(bench)
        return (yield from train_student(bench, teacher))

    def finish(self, record: ModelRecord) -> dict[str, Any]:
        """Key, size and last accuracy (0 to 1, validation, eager) of the network in the store."""
        result = {"key": record.key, "num_params": record.num_params, "macs": record.macs}
        return result | ({"val_accuracy": record.curve[-1].val_accuracy} if record.curve else {})


class PruneTrial(StudentTrial):
    """Prunes and recovers one student; teacher and student are found in the store or made first."""

    def begin(self, task: TrialTask, place: Workspace) -> Epochs:
        """Teacher, student, then pruning and recovery."""
        bench = Bench.of(task.candidate, place)
        teacher = yield from train_teacher(bench)
        student = yield from train_student(bench, teacher)
        shape = measure_shape(bench, export_teacher(bench, teacher))
        return (yield from recover(bench, teacher, student, channel_ratio=shape.channel_ratio))
