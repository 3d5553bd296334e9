"""Frozen configurations of the stages (standard library only).

Every field name is unique across the classes, so that a candidate flattens into one row: config field = Optuna
parameter = MLflow parameter = CSV column.
"""

import dataclasses
import math
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from trainables.config.checks import at_default
from trainables.config.compression import LATENCY_RUNTIMES as LATENCY_RUNTIMES
from trainables.config.compression import ExportConfig, PruneConfig
from trainables.config.compression import MeasureConfig as MeasureConfig
from trainables.config.training import CROPS as CROPS
from trainables.config.training import KD_LOSSES as KD_LOSSES
from trainables.config.training import OPTIMIZERS as OPTIMIZERS
from trainables.config.training import TEACHER_ITSELF as TEACHER_ITSELF
from trainables.config.training import AugmentConfig as AugmentConfig
from trainables.config.training import DataConfig as DataConfig
from trainables.config.training import StudentConfig as StudentConfig
from trainables.config.training import TeacherConfig as TeacherConfig
from trainables.config.training import TrainingConfig as TrainingConfig

# The settings whose values make others inert, or that can spell one candidate in two ways. A new setting of this kind
# must be added here: the search space expands only these.
DECIDING = frozenset(
    {
        *("student_model", "kd_loss", "alpha"),
        *("pruning_method", "pruning_ratio", "pruning_criterion", "pruning_scope", "precision"),
    }
)


class Decoded(Protocol):
    """What `resolve` needs to know about the decoded images; `DatasetRecord` satisfies it."""

    @property
    def name(self) -> str:
        """The name of the data set, without a local path."""

    @property
    def image_size(self) -> int:
        """Pixels per side of the networks' input."""

    @property
    def unlabeled(self) -> str | None:
        """The digest of the images without labels; None if there are none."""


@dataclass(frozen=True, kw_only=True)
class CandidateConfig:
    """All settings of one candidate, from the data to the measured file."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)

    def flat(self) -> dict[str, Any]:
        """One row with every field of every part under its own name."""
        row: dict[str, Any] = {}
        for part in fields(self):
            row |= dataclasses.asdict(getattr(self, part.name))
        return row

    @property
    def cuts_teacher(self) -> bool:
        """Whether the student is the teacher itself, trained already, so that all training follows the cut."""
        return self.student.student_model == TEACHER_ITSELF

    @property
    def needs_training(self) -> bool:
        """False for the teacher's own network with nothing removed: its file is a candidate without any training."""
        return not (self.cuts_teacher and self.prune.pruning_ratio == 0)

    @property
    def learns_from_teacher(self) -> bool:
        """Whether a stage trains with a soft term, the only one that images without labels have."""
        trained = self.needs_training or self.export.precision == "int8_qat"
        return trained and self.student.soft_weight > 0

    def teaching_key(self) -> dict[str, Any]:
        """The part of a store key that says how a student is taught."""
        return {**self.data.unlabeled_key(), **vars(self.augment), **vars(self.training), **self.student.key_parts()}

    def taught_epochs(self, epochs: int) -> int:
        """How many of a stage's epochs, its first, need the teacher, who alone teaches the images without labels."""
        own = self.student
        if own.soft_weight == 0:
            return 0
        if own.kd_anneal == 0 or self.data.unlabeled is not None:
            return epochs
        return math.ceil(own.kd_anneal * epochs - 1e-9)  # a product that rounding has put just above a whole number

    def taught_views(self) -> list[int]:
        """The views of training images for which a teacher's logits are needed."""
        qat = self.export.qat_epochs if self.export.precision == "int8_qat" else 0
        first, found = 0, set(range(self.taught_epochs(qat)))
        for epochs in (self.student.student_epochs, *self.prune.epochs_of_cuts()):
            found.update(range(first, first + self.taught_epochs(epochs)))
            first += epochs
        return sorted(found)

    @property
    def network(self) -> str:
        """The model name of the network that is pruned."""
        return self.teacher.teacher_model if self.cuts_teacher else self.student.student_model

    def inert(self) -> frozenset[str]:
        """Settings of student, pruning and export that have no effect given the others."""
        return self.student.inert() | self.prune.inert() | self.export.inert() | self._decided_by_teacher()

    def _decided_by_teacher(self) -> frozenset[str]:
        """Settings that a student does without if it is the teacher: its weights are there, and uncut it is trained."""
        if not self.cuts_teacher:
            return frozenset()
        if self.needs_training or self.export.precision == "int8_qat":  # which trains on, with the student's loss
            return frozenset({"student_pretrained", "student_anneal"})
        return frozenset(vars(self.student)) - {"student_model"} | {"recovery_learning_rate_factor"}

    def replace(self, **changes: Any) -> "CandidateConfig":
        """A copy with fields changed by their flat names.

        Raises:
            ValueError: if no part has a field of that name, or a value is out of range.
        """
        parts: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            own = {f.name: changes.pop(f.name) for f in fields(value) if f.name in changes}
            parts[part.name] = dataclasses.replace(value, **own) if own else value
        if changes:
            raise ValueError(f"Unknown configuration fields: {', '.join(sorted(changes))}.")
        return CandidateConfig(**parts)

    def canonical(self) -> "CandidateConfig":
        """The same candidate with inert settings at their defaults, so that equivalent candidates compare equal."""
        epochs: dict[str, int | bool | str] = {"recovery_budget": "epochs"}  # spelt out from here on
        factor = self.prune.epochs_factor(taught=self.learns_from_teacher)
        if self.cuts_teacher:  # it has been trained: all epochs follow the cut, and uncut it needs none
            total = round(factor * (self.student.student_epochs + self.prune.recovery_epochs))
            epochs |= {"student_epochs": 0, "recovery_epochs": total if self.needs_training else 0}
        elif self.prune.recovery_epochs == 0:
            epochs |= {"student_anneal": True}
        else:
            epochs |= {"recovery_epochs": round(factor * self.prune.recovery_epochs)}
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        for name in ("student", "prune", "export"):
            plain = parts[name].canonical()
            changes = at_default(type(plain), self._decided_by_teacher()) | epochs
            parts[name] = dataclasses.replace(plain, **{key: changes[key] for key in changes if key in vars(plain)})
        if not self.learns_from_teacher:
            parts["data"] = dataclasses.replace(self.data, unlabeled=None)
        return CandidateConfig(**parts)

    def check_unlabeled(self) -> None:
        """Check that someone teaches the images without labels.

        Raises:
            ValueError: if there are such images, and no teacher.
        """
        if self.data.unlabeled is not None and self.student.soft_weight == 0:
            silent = "kd_loss=none" if self.student.kd_loss == "none" else f"alpha={self.student.alpha}"
            raise ValueError(
                f"unlabeled={self.data.unlabeled} and {silent}: only a teacher can teach images without labels; leave"
                " one of them out."
            )

    def resolve(self, dataset: Decoded, *, device: str) -> "Candidate":
        """The candidate this configuration describes, in the canonical form that trials, keys and records use.

        Args:
            dataset: the decoded images; their name contains no local path, and a digest stands for those without
                labels.
            device: where it trains, `cpu` or `gpu`; sets the training precision if none was requested.
        """
        parts = vars(self.canonical())
        unlabeled = parts["data"].unlabeled and dataset.unlabeled
        data = dataclasses.replace(self.data, dataset=dataset.name, image_size=dataset.image_size, unlabeled=unlabeled)
        return Candidate(**parts | {"data": data, "training": self.training.on(device)})


@dataclass(frozen=True, kw_only=True)
class Candidate(CandidateConfig):
    """A resolved configuration in canonical form; only `CandidateConfig.resolve` creates one.

    Inert settings are at their defaults, the training precision and the image size are explicit, and no local path is
    left. Store keys and the recipe, record, CSV and MLflow rows of its trial are all derived from its flat row.
    """

    def __post_init__(self) -> None:
        # asserts, not ValueErrors: a user cannot get here with an unresolved configuration, only our own code can
        assert self.training.train_precision is not None and self.data.image_size is not None, "`resolve` comes first"
        assert vars(self.canonical()) == vars(self), "`resolve` comes first"

    def recipe(self) -> dict[str, Any]:
        """The settings that determine the file: all but those of the latency measurement."""
        row = self.flat()
        return {name: row[name] for name in row if name not in vars(self.measure)}

    def teacher_row(self) -> dict[str, Any]:
        """The row of the teacher: without student and pruning settings, and without the images it does not see."""
        # The teacher's file is always FP32, so the candidate's export settings are reset, all but the opset.
        row = self.flat() | vars(ExportConfig(opset=self.export.opset)) | {"unlabeled": None}
        return {name: row[name] for name in row if name not in {**vars(self.student), **vars(self.prune)}}
