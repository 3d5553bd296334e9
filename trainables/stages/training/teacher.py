"""The teacher: trained or fine-tuned once, found again by every trial."""

import dataclasses
from collections.abc import Generator
from pathlib import Path

import torch

from trainables.config.candidate import CandidateConfig
from trainables.config.training import TrainingConfig
from trainables.records.stages import DatasetRecord, EpochRecord, ModelRecord, read_model
from trainables.stages.data.on_device import Images
from trainables.stages.models.build import source_of
from trainables.stages.models.stored import build_for, write_model
from trainables.stages.training.lessons import Labels
from trainables.stages.training.loop import Loop, seed_for, train
from trainables.stages.workspace import Workspace
from trainables.store.results import Key, stage_key

VERSION = 4


def teacher_key(config: CandidateConfig, dataset: DatasetRecord) -> Key:
    """Where the teacher of this configuration and data set lies in the store: what the student alone has is no part."""
    return stage_key(
        "teacher",
        version=VERSION,
        model_source=source_of(config.teacher.teacher_model),
        parents=[dataset.fingerprint],
        **vars(config.augment),
        **vars(_training(config).on("cpu")),
        **vars(config.teacher),
    )


def teacher(
    config: CandidateConfig, dataset: DatasetRecord, images: Images, place: Workspace
) -> Generator[EpochRecord, None, ModelRecord]:
    """Train the teacher with cross-entropy on the labels, or find it in the store; yields its epochs."""
    key = teacher_key(config, dataset)

    def compute(folder: Path) -> Generator[EpochRecord, None, None]:
        own = config.teacher
        training = _training(config)
        torch.manual_seed(seed_for(training.seed, "teacher", "weights"))
        model = build_for(own.teacher_model, dataset, pretrained=own.pretrained)
        loop = Loop(
            stage="teacher",
            epochs=own.teacher_epochs,
            learning_rate=own.teacher_learning_rate,
            training=training,
            optimizer=own.teacher_optimizer,
            augment=config.augment,
        )

        lesson = Labels(config.training.label_smoothing)
        curve = yield from train(model, loop, images, lesson, folder, turn=place.device_lock().shared)
        write_model(model, folder, key=key, name=own.teacher_model, dataset=dataset, curve=curve)

    return read_model((yield from place.store.obtain(key, compute)))


def _training(config: CandidateConfig) -> TrainingConfig:
    """The common settings of training with the teacher's own seed and weight decay in place of the student's."""
    own = config.teacher
    return dataclasses.replace(config.training, seed=own.teacher_seed, weight_decay=own.teacher_weight_decay)
