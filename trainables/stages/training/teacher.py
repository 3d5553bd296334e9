"""Train or fine-tune the teacher once; every trial finds it in the store."""

import dataclasses
from pathlib import Path

import torch

from trainables.config.candidate import Candidate
from trainables.config.training import TrainingConfig
from trainables.records.stages import DatasetRecord
from trainables.stages.models.build import source_digest
from trainables.stages.models.stored import build_for, build_to_train
from trainables.stages.models.weights import find_weights, load_weights
from trainables.stages.training.lessons import Labels
from trainables.stages.training.loop import Loop, seed_for
from trainables.stages.training.stage import Epochs, Made, fit, obtain_model
from trainables.stages.workspace import Bench
from trainables.store.results import Key, stage_key

VERSION = 5


def teacher_key(candidate: Candidate, dataset: DatasetRecord) -> Key:
    """The store key of this teacher, which settings of the student do not change."""
    # the training settings hold the smoothing; older keys have no weights
    new = () if candidate.teacher.teacher_weights else ("teacher_weights",)
    without = ("teacher_label_smoothing", *new)
    return stage_key(
        "teacher",
        version=VERSION,
        model_source=source_digest(candidate.teacher.teacher_model),
        parents=[dataset.fingerprint],
        **vars(candidate.augment),
        **vars(_training(candidate)),
        **{name: value for name, value in vars(candidate.teacher).items() if name not in without},
    )


def train_teacher(bench: Bench) -> Epochs:
    """Train the teacher with cross-entropy on the labels, or find it in the store; yield its epochs."""
    candidate, own = bench.candidate, bench.candidate.teacher

    def make(folder: Path) -> Made:
        torch.manual_seed(seed_for(own.teacher_seed, "teacher", "weights"))
        if own.teacher_weights is None:
            model = build_to_train(own.teacher_model, bench.dataset, pretrained=own.pretrained)
        else:
            model = build_for(own.teacher_model, bench.dataset)
            load_weights(model, find_weights(own.teacher_weights, bench.place.store))
        lesson = Labels(own.teacher_label_smoothing)
        return model, (yield from fit(bench.labelled(), model, teacher_loop(candidate), lesson, folder))

    return obtain_model(bench, teacher_key(candidate, bench.dataset), own.teacher_model, make)


def teacher_loop(candidate: Candidate) -> Loop:
    """The settings of the teacher's training loop."""
    own = candidate.teacher
    return Loop(
        stage="teacher",
        epochs=own.teacher_epochs,
        learning_rate=own.teacher_learning_rate,
        training=_training(candidate),
        optimizer=own.teacher_optimizer,
        augment=candidate.augment,
    )


def _training(candidate: Candidate) -> TrainingConfig:
    """The training settings, with the teacher's own in place of the student's."""
    own = candidate.teacher
    return dataclasses.replace(
        candidate.training,
        seed=own.teacher_seed,
        weight_decay=own.teacher_weight_decay,
        label_smoothing=own.teacher_label_smoothing,
    )
