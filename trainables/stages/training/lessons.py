"""What a network is taught in an epoch: labels alone, or labels and a teacher."""

from torch import Tensor

from trainables.config.candidate import CandidateConfig
from trainables.records.stages import DatasetRecord, ModelRecord
from trainables.stages.data.on_device import Images
from trainables.stages.training.loop import Batch, Turn
from trainables.stages.training.losses import distillation_loss, hard_term
from trainables.stages.training.soft_labels import SoftLabels
from trainables.stages.workspace import Workspace


class Distillation:
    """A lesson of labels and of what the teacher says about the same augmented pixels."""

    def __init__(self, config: CandidateConfig, soft_labels: SoftLabels) -> None:
        self._config, self._soft_labels = config, soft_labels

    @classmethod
    def of(
        cls, config: CandidateConfig, dataset: DatasetRecord, images: Images, teacher: ModelRecord, place: Workspace
    ) -> "Distillation":
        """The lesson of a candidate, with the bank in the store."""
        training, views = config.training, config.student.student_epochs + config.prune.recovery_epochs
        return cls(
            config,
            SoftLabels(teacher, dataset, images, config.augment, place.store, training=training, views=views),
        )

    def open(self, view: int, turn: Turn) -> None:
        """Have the teacher's logits of this view, unless the loss gives them no weight."""
        if self._config.student.soft_weight > 0:
            self._soft_labels.open(view, turn)

    def __call__(self, logits_BC: Tensor, batch: Batch) -> Tensor:
        """The loss in nats."""
        student, label_smoothing = self._config.student, self._config.training.label_smoothing
        if student.soft_weight == 0:  # what distillation_loss gives then, without asking a teacher
            return hard_term(logits_BC, batch.target, label_smoothing=label_smoothing)
        teacher_BC = self._soft_labels(batch.view, batch.index)
        return distillation_loss(logits_BC, teacher_BC, batch.target, settings=student, label_smoothing=label_smoothing)


class Labels:
    """A lesson of labels alone."""

    def __init__(self, label_smoothing: float) -> None:
        self._label_smoothing = label_smoothing

    def open(self, view: int, turn: Turn) -> None:
        """Nothing is needed."""

    def __call__(self, logits_BC: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy, nats."""
        return hard_term(logits_BC, batch.target, label_smoothing=self._label_smoothing)
