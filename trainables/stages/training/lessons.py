"""The loss of a network in an epoch: from labels only, or from labels and a teacher."""

import dataclasses

import torch
from torch import Tensor

from trainables.config.candidate import Candidate, StudentConfig
from trainables.records.stages import ModelRecord
from trainables.stages.data.on_device import Images
from trainables.stages.training.loop import Batch, Loop, Turn
from trainables.stages.training.losses import distillation_loss, hard_term
from trainables.stages.training.soft_labels import SoftLabels
from trainables.stages.workspace import Bench


class Labels:
    """A lesson from labels only."""

    def __init__(self, label_smoothing: float) -> None:
        self._label_smoothing = label_smoothing

    def open(self, view: int, turn: Turn) -> None:
        """Do nothing: labels need no preparation."""

    def __call__(self, logits_BC: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy in nats."""
        return hard_term(logits_BC, batch.target, label_smoothing=self._label_smoothing, labelled_B=batch.labelled)


class LogitsAtHand:
    """A lesson from labels and one fixed set of teacher logits, at the cost of distillation.

    Only for probes: real students learn from the teacher's logits of exactly the pixels they see.
    """

    def __init__(self, student: StudentConfig, images: Images, *, label_smoothing: float) -> None:
        self._student, self._label_smoothing = student, label_smoothing
        shape = (len(images.train_labels), images.num_classes)
        self.logits_NC = torch.zeros(shape, dtype=torch.float16, device=images.mean.device)
        """The teacher's logits, float16 [N, C]; zeros until they are replaced."""

    def open(self, view: int, turn: Turn) -> None:
        """Do nothing: the logits are at hand."""

    def __call__(self, logits_BC: Tensor, batch: Batch) -> Tensor:
        """The loss in nats."""
        teacher_BC = self.logits_NC[batch.index].float()
        return _taught(logits_BC, teacher_BC, batch, self._student, self._label_smoothing)


class Distillation:
    """A lesson from labels and the teacher's logits of the same augmented pixels, for one training stage."""

    def __init__(self, candidate: Candidate, soft_labels: SoftLabels, loop: Loop) -> None:
        self._candidate, self._soft_labels, self._loop = candidate, soft_labels, loop
        self._student = candidate.student
        """With the alpha of the open view's epoch."""
        self._needs_teacher = False

    @classmethod
    def of(cls, bench: Bench, teacher: ModelRecord, loop: Loop) -> "Distillation":
        """The lesson of a candidate, with the soft labels in the store."""
        until = loop.first_view + bench.candidate.taught_epochs(loop.epochs)
        return cls(bench.candidate, SoftLabels(bench, teacher, until=until), loop)

    def open(self, view: int, turn: Turn) -> None:
        """Load or compute the teacher's logits of this view, unless the loss gives them no weight."""
        own, epoch = self._candidate.student, view - self._loop.first_view + 1
        self._student = dataclasses.replace(own, alpha=own.alpha_in(epoch, self._loop.epochs))
        self._needs_teacher = epoch <= self._candidate.taught_epochs(self._loop.epochs)
        if self._needs_teacher:
            self._soft_labels.open(view, turn)

    def __call__(self, logits_BC: Tensor, batch: Batch) -> Tensor:
        """The loss in nats."""
        label_smoothing = self._candidate.training.label_smoothing
        if not self._needs_teacher:  # equals distillation_loss, without running a teacher
            return hard_term(logits_BC, batch.target, label_smoothing=label_smoothing, labelled_B=batch.labelled)
        teacher_BC = self._soft_labels(batch.view, batch.index)
        return _taught(logits_BC, teacher_BC, batch, self._student, label_smoothing)


def _taught(logits_BC: Tensor, teacher_BC: Tensor, batch: Batch, student: StudentConfig, smoothing: float) -> Tensor:
    return distillation_loss(
        logits_BC,
        teacher_BC,
        batch.target,
        settings=student,
        label_smoothing=smoothing,
        labelled_B=batch.labelled,
    )
