"""Frozen configurations of the stages (standard library only).

Every field name is unique across the classes, so that a candidate flattens into one row: config field = Optuna
parameter = MLflow parameter = CSV column.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from trainables.config.checks import at_default, check_epochs, check_not_negative, check_positive, check_word
from trainables.config.compression import LATENCY_RUNTIMES as LATENCY_RUNTIMES
from trainables.config.compression import ExportConfig, PruneConfig
from trainables.config.compression import MeasureConfig as MeasureConfig
from trainables.config.training import CROPS as CROPS
from trainables.config.training import AugmentConfig as AugmentConfig
from trainables.config.training import DataConfig as DataConfig
from trainables.config.training import TrainingConfig as TrainingConfig

OPTIMIZERS = ("adamw", "sgd")
# The soft (teacher) terms of `trainables.stages.training.losses`, and the settings that each reads besides alpha.
KD_LOSSES: Mapping[str, tuple[str, ...]] = {
    "kd": ("temperature",),
    "logit_std": ("temperature",),
    "dkd": ("temperature", "dkd_beta"),
    "dist": ("temperature",),
    "wttm": ("temperature",),
    "mse": (),
    "none": (),
}
LOSS_SETTINGS = frozenset(name for names in KD_LOSSES.values() for name in names) | {"kd_anneal"}
# As `student_model`: the teacher itself, whose trained weights are cut and recovered by distillation from the uncut.
TEACHER_ITSELF = "teacher"
# The settings whose values make others inert, or that can spell one candidate in two ways. A new setting of this kind
# must be added here: the search space expands only these.
DECIDING = frozenset(
    {
        *("student_model", "kd_loss", "alpha"),
        *("pruning_method", "pruning_ratio", "pruning_criterion", "pruning_scope", "precision"),
    }
)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The large model the student learns from."""

    teacher_model: str = "resnet18"
    """A model name of `trainables.stages.models.build` or `package.module:function`."""
    pretrained: bool = False
    """Start from torchvision's ImageNet weights."""
    teacher_weights: str | None = None
    """FILE with trained weights to start from: a state_dict, saved by torch or as .safetensors; records name its
    digest. With `teacher_epochs` 0 it is the teacher as it is."""
    teacher_epochs: int = 30
    """Passes over the training split; 0 keeps the weights as they are."""
    teacher_learning_rate: float = 1e-3
    """Peak of the cosine schedule; usually 1e-3 with `adamw`, and 0.1 with `sgd` and 128 images a step."""
    teacher_optimizer: str = "adamw"
    """`adamw`, or `sgd` (Nesterov, momentum 0.9): for networks with BatchNorm, from random weights, and long runs; give
    its rate and decay with it."""
    teacher_weight_decay: float = 1e-4
    """Of the teacher's optimizer: apart from the gradient (decoupled) with `adamw`, part of it with `sgd`, where it is
    usually 5e-4."""
    teacher_label_smoothing: float = 0.0
    """Share of the label mass that the teacher's own training spreads over all classes, in [0, 1); a smoothed teacher
    teaches less (arXiv:1906.02629)."""
    teacher_seed: int = 0
    """The teacher's weights, batch order and dropout; apart from `seed`, so that more seeds share one teacher."""

    def __post_init__(self) -> None:
        check_epochs("teacher_epochs", self.teacher_epochs)
        if self.pretrained and self.teacher_weights is not None:
            raise ValueError(f"teacher_weights={self.teacher_weights} and pretrained=True: leave one of them out.")
        check_positive("teacher_learning_rate", self.teacher_learning_rate)
        check_word("teacher_optimizer", self.teacher_optimizer, OPTIMIZERS)
        check_not_negative("teacher_weight_decay", self.teacher_weight_decay)
        if not 0 <= self.teacher_label_smoothing < 1:
            value = self.teacher_label_smoothing
            raise ValueError(f"`0 <= teacher_label_smoothing < 1` must hold, but got teacher_label_smoothing={value}.")


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The small model and how it is distilled."""

    student_model: str = "mobilenet_v3_small"
    """`teacher` (its trained network is cut), a model name of `trainables.stages.models.build`, or
    `package.module:function`."""
    student_pretrained: bool = False
    """Start from torchvision's ImageNet weights."""
    student_epochs: int = 12
    """Passes over the training split before the cut; a student that is the teacher has been trained, and takes them
    after the cut, beside `recovery_epochs`."""
    learning_rate: float = 2e-3
    """Peak of AdamW's cosine schedule."""
    student_anneal: bool = False
    """Whether the rate falls to 0 before the cut, too; else it stays at its peak, and falls in recovery alone. Without
    `recovery_epochs` it falls."""
    kd_loss: str = "kd"
    """Soft, teacher term: `kd`, `logit_std`, `dkd`, `dist`, `wttm`, `mse` or `none` (labels only)."""
    temperature: float = 2.0
    """Softens teacher and student logits, > 0; `mse` does without, `wttm` softens the teacher alone."""
    alpha: float = 0.7
    """Weight of the soft, teacher term in [0, 1]; the labels get 1 - alpha."""
    kd_anneal: float = 0.0
    """Share of a stage's epochs, 0 to 1, over which alpha falls linearly to 0: the labels alone teach the rest, so that
    a student can pass its teacher (arXiv:1907.04829). 0 keeps alpha."""
    dkd_beta: float = 8.0
    """Weight of the classes that are not the target, >= 0; used by `dkd` only."""

    def __post_init__(self) -> None:
        check_epochs("student_epochs", self.student_epochs)
        check_positive("learning_rate", self.learning_rate)
        check_positive("temperature", self.temperature)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"`0 <= alpha <= 1` must hold, but got alpha={self.alpha}.")
        if not 0 <= self.kd_anneal <= 1:
            raise ValueError(f"`0 <= kd_anneal <= 1` must hold, but got kd_anneal={self.kd_anneal}.")
        if self.kd_loss not in KD_LOSSES:
            raise ValueError(f"`kd_loss` must be one of {', '.join(KD_LOSSES)}, but got kd_loss={self.kd_loss!r}.")
        check_not_negative("dkd_beta", self.dkd_beta)

    @property
    def soft_weight(self) -> float:
        """alpha, or 0 if the loss has no soft term."""
        return 0.0 if self.kd_loss == "none" else self.alpha

    def alpha_in(self, epoch: int, epochs: int) -> float:
        """alpha in an epoch of a stage, counted from 1.

        Example:
            >>> [StudentConfig(alpha=0.5, kd_anneal=0.5).alpha_in(epoch, 4) for epoch in (1, 2, 3, 4)]
            [0.5, 0.25, 0.0, 0.0]
        """
        if self.kd_anneal == 0:
            return self.soft_weight
        return self.soft_weight * max(0.0, 1 - (epoch - 1) / epochs / self.kd_anneal)

    def key_parts(self) -> dict[str, Any]:
        """The settings for store keys; `kd_anneal`, which older keys lack, is left out at its default."""
        return {name: value for name, value in vars(self).items() if (name, value) != ("kd_anneal", 0.0)}

    def inert(self) -> frozenset[str]:
        """Settings without effect given the others: those the loss ignores, and alpha if there is no soft term."""
        read = (*KD_LOSSES[self.kd_loss], "kd_anneal") if self.soft_weight > 0 else ()
        return LOSS_SETTINGS.difference(read) | ({"alpha"} if self.kd_loss == "none" else frozenset())

    def canonical(self) -> "StudentConfig":
        """The same student with inert settings at their defaults.

        alpha=0 and kd_loss=none both mean training without a teacher; both become kd_loss=none, alpha=0.
        """
        # alpha stays at 0: its default would read as if a teacher had been used
        taught = self if self.soft_weight > 0 else dataclasses.replace(self, kd_loss="none", alpha=0.0)
        return dataclasses.replace(taught, **at_default(StudentConfig, taught.inert() - {"alpha"}))


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
        if self.cuts_teacher:  # it has been trained: all epochs follow the cut, and uncut it needs none
            total = round(self.prune.epochs_factor * (self.student.student_epochs + self.prune.recovery_epochs))
            epochs |= {"student_epochs": 0, "recovery_epochs": total if self.needs_training else 0}
        elif self.prune.recovery_epochs == 0:
            epochs |= {"student_anneal": True}
        else:
            epochs |= {"recovery_epochs": round(self.prune.epochs_factor * self.prune.recovery_epochs)}
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
            device: where it trains, `cpu` or `cuda`; sets the training precision if none was requested.
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
