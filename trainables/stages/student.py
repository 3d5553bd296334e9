"""The student, distilled from the teacher; and the loss it shares with recovery."""

from collections.abc import Generator
from pathlib import Path

import torch

from trainables.configs import CandidateConfig
from trainables.records import DatasetRecord, EpochRecord, ModelRecord, read_model
from trainables.stages.losses import kd_loss
from trainables.stages.trained import write_model
from trainables.stages.training import Batch, Images, Loop, Loss, seed_for, train
from trainables.stages.workspace import Workspace, build_for, load_model
from trainables.store import Key, stage_key

VERSION = 1


def student_key(config: CandidateConfig, dataset: DatasetRecord, teacher: ModelRecord) -> Key:
    """Where the student of this configuration lies in the store."""
    return stage_key(
        "student",
        version=VERSION,
        parents=[dataset.fingerprint, teacher.key],
        **vars(config.augment),
        **vars(config.training),
        **vars(config.student),
    )


def distillation_loss(config: CandidateConfig, teacher: ModelRecord, images: Images) -> Loss:
    """`kd_loss` against the teacher's view of the very same augmented pixels."""
    network = load_model(teacher).to(images.mean.device)

    def loss(logits_BC: torch.Tensor, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            teacher_BC = network(images.normalise(batch.pixels))
        return kd_loss(
            logits_BC,
            teacher_BC,
            batch.target,
            temperature=config.student.temperature,
            alpha=config.student.alpha,
            label_smoothing=config.training.label_smoothing,
        )

    return loss


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
        loss = distillation_loss(config, teacher, images)
        curve = yield from train(model, loop, images, loss, folder, turn=place.lease().shared)
        write_model(model, folder, key=key, name=config.student.student_model, dataset=dataset, curve=curve)

    return read_model((yield from place.store.obtain(key, compute)))
