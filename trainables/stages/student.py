"""The student, distilled from the teacher; and the lesson it shares with recovery."""

from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor

from trainables.configs import CandidateConfig
from trainables.records import DatasetRecord, EpochRecord, ModelRecord, read_model
from trainables.stages.losses import distillation_loss, hard_term
from trainables.stages.models import source_of
from trainables.stages.soft_labels import SoftLabels
from trainables.stages.tensors import Images
from trainables.stages.trained import write_model
from trainables.stages.training import Batch, Loop, Turn, seed_for, train
from trainables.stages.workspace import Workspace, build_for
from trainables.store import Key, stage_key

VERSION = 4


def student_key(config: CandidateConfig, dataset: DatasetRecord, teacher: ModelRecord) -> Key:
    """Where the student of this configuration lies in the store."""
    return stage_key(
        "student",
        version=VERSION,
        model_source=source_of(config.student.student_model),
        parents=[dataset.fingerprint, teacher.key],
        **vars(config.augment),
        **vars(config.training.on("cpu")),
        **vars(config.student.canonical()),
    )


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


def student(
    config: CandidateConfig, dataset: DatasetRecord, images: Images, teacher: ModelRecord, place: Workspace
) -> Generator[EpochRecord, None, ModelRecord]:
    """Distil the dense student, or find it in the store; yields its epochs."""
    key = student_key(config, dataset, teacher)

    def compute(folder: Path) -> Generator[EpochRecord, None, None]:
        torch.manual_seed(seed_for(config.training.seed, "student", "weights"))
        model = build_for(config.student.student_model, dataset, pretrained=config.student.student_pretrained)
        loop = Loop(
            stage="student",
            epochs=config.student.student_epochs,
            learning_rate=config.student.learning_rate,
            training=config.training,
            augment=config.augment,
        )
        lesson = Distillation.of(config, dataset, images, teacher, place)
        curve = yield from train(model, loop, images, lesson, folder, turn=place.lease().shared)
        write_model(model, folder, key=key, name=config.student.student_model, dataset=dataset, curve=curve)

    return read_model((yield from place.store.obtain(key, compute)))
