"""The teacher: trained or fine-tuned once, found again by every trial."""

import dataclasses
from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor

from trainables.configs import CandidateConfig
from trainables.records import DatasetRecord, EpochRecord, ModelRecord, read_model
from trainables.stages.losses import hard_term
from trainables.stages.models import source_of
from trainables.stages.tensors import Images
from trainables.stages.trained import write_model
from trainables.stages.training import Batch, Loop, Turn, seed_for, train
from trainables.stages.workspace import Workspace, build_for
from trainables.store import Key, stage_key
from trainables.training_config import TrainingConfig

VERSION = 4


class Labels:
    """A lesson of labels alone."""

    def __init__(self, label_smoothing: float) -> None:
        self._label_smoothing = label_smoothing

    def open(self, view: int, turn: Turn) -> None:
        """Nothing is needed."""

    def __call__(self, logits_BC: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy, nats."""
        return hard_term(logits_BC, batch.target, label_smoothing=self._label_smoothing)


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
        curve = yield from train(model, loop, images, lesson, folder, turn=place.lease().shared)
        write_model(model, folder, key=key, name=own.teacher_model, dataset=dataset, curve=curve)

    return read_model((yield from place.store.obtain(key, compute)))


def _training(config: CandidateConfig) -> TrainingConfig:
    """The common settings of training with the teacher's own seed and weight decay in place of the student's."""
    own = config.teacher
    return dataclasses.replace(config.training, seed=own.teacher_seed, weight_decay=own.teacher_weight_decay)
