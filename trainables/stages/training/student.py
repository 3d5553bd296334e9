"""Distil the student from the teacher."""

from pathlib import Path

import torch

from trainables.config.candidate import Candidate
from trainables.records.stages import DatasetRecord, ModelRecord
from trainables.stages.models.build import source_digest
from trainables.stages.models.stored import build_to_train
from trainables.stages.training.lessons import Distillation
from trainables.stages.training.loop import Loop, seed_for
from trainables.stages.training.stage import Epochs, Made, fit, obtain_model
from trainables.stages.workspace import Bench
from trainables.store.results import Key, stage_key

VERSION = 6


def student_key(candidate: Candidate, dataset: DatasetRecord, teacher: ModelRecord) -> Key:
    """The store key of this candidate's dense student; older keys say nothing of a rate that falls."""
    own = candidate.student.key_parts()
    return stage_key(
        "student",
        version=VERSION,
        model_source=source_digest(candidate.student.student_model),
        parents=[dataset.fingerprint, teacher.key],
        **candidate.data.unlabeled_key(),
        **vars(candidate.augment),
        **vars(candidate.training),
        **{name: value for name, value in own.items() if (name, value) != ("student_anneal", True)},
    )


def train_student(bench: Bench, teacher: ModelRecord) -> Epochs:
    """Distil the dense student, or find it in the store; yield its epochs. The teacher itself needs none."""
    candidate, own = bench.candidate, bench.candidate.student
    if candidate.cuts_teacher:
        yield from ()
        return teacher

    def make(folder: Path) -> Made:
        torch.manual_seed(seed_for(candidate.training.seed, "student", "weights"))
        model = build_to_train(own.student_model, bench.dataset, pretrained=own.student_pretrained)
        loop = student_loop(candidate)
        return model, (yield from fit(bench, model, loop, Distillation.of(bench, teacher, loop), folder))

    return (yield from obtain_model(bench, student_key(candidate, bench.dataset, teacher), own.student_model, make))


def student_loop(candidate: Candidate, *, more_epochs: int = 0) -> Loop:
    """The settings of the student's training loop; with `more_epochs` it takes those of recovery in one schedule."""
    return Loop(
        stage="student",
        epochs=candidate.student.student_epochs + more_epochs,
        learning_rate=candidate.student.learning_rate,
        anneal=candidate.student.student_anneal or more_epochs > 0,
        training=candidate.training,
        augment=candidate.augment,
    )
