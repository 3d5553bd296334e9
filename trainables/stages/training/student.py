"""The student, distilled from the teacher; and the lesson it shares with recovery."""

from collections.abc import Generator
from pathlib import Path

import torch

from trainables.config.candidate import CandidateConfig
from trainables.records.stages import DatasetRecord, EpochRecord, ModelRecord, read_model
from trainables.stages.data.on_device import Images
from trainables.stages.models.build import source_of
from trainables.stages.models.stored import build_for, write_model
from trainables.stages.training.lessons import Distillation
from trainables.stages.training.loop import Loop, seed_for, train
from trainables.stages.workspace import Workspace
from trainables.store.results import Key, stage_key

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
        curve = yield from train(model, loop, images, lesson, folder, turn=place.device_lock().shared)
        write_model(model, folder, key=key, name=config.student.student_model, dataset=dataset, curve=curve)

    return read_model((yield from place.store.obtain(key, compute)))
