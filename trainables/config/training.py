"""How a candidate's networks are trained: images, their augmentation, teacher and student (standard library only)."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainables.config.checks import at_default, check_epochs, check_not_negative, check_positive, check_word

OWN_STATISTICS = "dataset"
IMAGENET = "0.485,0.456,0.406/0.229,0.224,0.225"  # of torchvision's and most of timm's weights
Triple = tuple[float, float, float]
"""One number each for R, G and B."""
CROPS = ("none", "padded", "resized")
TRAIN_PRECISIONS = ("fp32", "amp")
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


def normalisation(normalize: str) -> tuple[Triple, Triple] | None:
    """Mean and standard deviation of R, G and B on the scale [0, 1]; None for those of the training images.

    Example:
        >>> normalisation("0.5/0.25,0.2,0.25")
        ((0.5, 0.5, 0.5), (0.25, 0.2, 0.25))

    Raises:
        ValueError: if `normalize` is none of what `DataConfig.normalize` takes.
    """
    if normalize == OWN_STATISTICS:
        return None
    mean, _, std = (IMAGENET if normalize == "imagenet" else normalize).partition("/")
    numbers = _three(mean), _three(std)
    if all(0 <= value <= 1 for value in numbers[0]) and all(0 < value <= 1 for value in numbers[1]):
        return numbers
    raise ValueError(
        f"`normalize` must be {OWN_STATISTICS}, imagenet or MEAN/STD such as 0.5/0.25 or 0.48,0.45,0.4/0.2,0.2,0.2, of"
        f" pixels from 0 to 1 (divide those from 0 to 255 by 255), but got normalize={normalize!r}."
    )


def _three(text: str) -> Triple:
    """One number three times, or three; three times nan for anything else."""
    try:
        numbers = [float(word) for word in text.split(",")]
        red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    except ValueError:
        return math.nan, math.nan, math.nan
    return red, green, blue


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how train is split. Where they lie on disk is not part of it."""

    dataset: str = "digits"
    """`digits`, `cifar10`, `cifar100`, `tiny-imagenet`, `folder:PATH`, `hf:NAME[:CONFIG]` of the Hugging Face hub, or
    `hf:PATH` with its parquet or arrow files."""
    image_size: int | None = None
    """Pixels of a side (default: the data set's own size)."""
    val_fraction: float = 0.1
    """Share of train cut off for validation, stratified, in (0, 1)."""
    split_seed: int = 0
    """Decides which images are validation images."""
    train_limit: int | None = None
    """Images left for training after the split, stratified (default: all)."""
    unlabeled: str | None = None
    """FOLDER of images without labels, at any depth, that students learn beside the training split, from the teacher
    alone (alpha = 1); the teacher does not see them, and records name their digest."""
    normalize: str = OWN_STATISTICS
    """Mean and deviation that pixels are brought to: `dataset` (those of the training images), `imagenet`, or
    MEAN/STD on the scale [0, 1], such as 0.5/0.25. A trained teacher needs its own."""

    def __post_init__(self) -> None:
        normalisation(self.normalize)
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"`0 < val_fraction < 1` must hold, but got val_fraction={self.val_fraction}.")
        if self.image_size is not None and not 8 <= self.image_size <= 1024:
            raise ValueError(f"`8 <= image_size <= 1024` must hold, but got image_size={self.image_size}.")
        if self.train_limit is not None and self.train_limit < 2:
            raise ValueError(f"`train_limit >= 2` must hold, but got train_limit={self.train_limit}.")

    def unlabeled_key(self) -> dict[str, str]:
        """The part of a student's store key that its teacher's lacks: the digest of the images without labels, if any.

        Only of a resolved configuration; before, there is a path in place of the digest.
        """
        return {} if self.unlabeled is None else {"unlabeled": self.unlabeled}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation as a pure function of (data_seed, epoch, sample)."""

    flip: bool = True
    """Mirror half of the images."""
    crop: str = "padded"
    """`padded` shifts by up to `crop_padding` pixels, `resized` is RandomResizedCrop."""
    crop_padding: int = 4
    """Pixels of the stored image, which is scaled afterwards; used by `padded` only."""
    randaugment_magnitude: int | None = None
    """RandAugment strength 0 to 30 with two operations an image (default: off)."""
    mixup_alpha: float | None = None
    """Beta(mixup_alpha, mixup_alpha) of Mixup, arXiv:1710.09412 (default: off)."""
    data_seed: int = 0
    """Decides every view."""

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"`crop` must be one of {', '.join(CROPS)}, but got crop={self.crop!r}.")
        if self.crop_padding < 0:
            raise ValueError(f"`crop_padding >= 0` must hold, but got crop_padding={self.crop_padding}.")
        if self.randaugment_magnitude is not None and not 0 <= self.randaugment_magnitude <= 30:
            value = self.randaugment_magnitude
            raise ValueError(f"`0 <= randaugment_magnitude <= 30` must hold, but got randaugment_magnitude={value}.")
        if self.mixup_alpha is not None and not self.mixup_alpha > 0:
            raise ValueError(f"`mixup_alpha > 0` must hold, but got mixup_alpha={self.mixup_alpha}.")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What the training stages of a candidate have in common."""

    batch_size: int = 128
    """Images a step."""
    weight_decay: float = 0.3
    """Of AdamW, decoupled, of all but vectors (biases, norms), wherever the student is trained, recovery and `int8_qat`
    included; measured on AlexNet and 10,000 images. The teacher has `teacher_weight_decay`."""
    label_smoothing: float = 0.05
    """Share of the label mass spread over all classes, in [0, 1)."""
    seed: int = 0
    """Weights, batch order and dropout of the student; the teacher has its own `teacher_seed`."""
    train_precision: str | None = None
    """Precision of training; amp is bfloat16 autocast. `precision` is that of the file to ship (default: amp on a GPU,
    fp32 on a CPU)."""
    deterministic: bool = False
    """Bit-equal reruns on a GPU too, at a price that is measured and printed; on a CPU reruns are bit-equal anyway."""
    compile: bool = False
    """torch.compile of the network while it trains; what a step gains is measured and printed. Compiling takes a minute
    an architecture, and what is compiled is kept for later trials of the machine."""

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(
                f"`batch_size >= 2` must hold (BatchNorm needs two), but got batch_size={self.batch_size}."
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"`0 <= label_smoothing < 1` must hold, but got label_smoothing={self.label_smoothing}.")
        check_not_negative("weight_decay", self.weight_decay)
        if self.train_precision not in (None, *TRAIN_PRECISIONS):
            known = ", ".join(TRAIN_PRECISIONS)
            raise ValueError(
                f"`train_precision` must be one of {known}, but got train_precision={self.train_precision!r}."
            )

    def on(self, device: str) -> "TrainingConfig":
        """The same settings with an explicit precision, as keys and records need it; `device` is `cpu` or `gpu`."""
        if self.train_precision is not None:
            return self
        return dataclasses.replace(self, train_precision="fp32" if device == "cpu" else "amp")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The large model the student learns from."""

    teacher_model: str = "resnet18"
    """A model's name, such as resnet18, resnet20 or any other of torchvision, `timm:NAME` (with weights:
    `timm:NAME.TAG`), or `package.module:function`."""
    pretrained: bool = False
    """Start from torchvision's ImageNet weights, or timm's of the default tag."""
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
    """`teacher` (its trained network is cut), a model's name, such as resnet20, `timm:NAME` (with weights:
    `timm:NAME.TAG`), or `package.module:function`."""
    student_pretrained: bool = False
    """Start from torchvision's ImageNet weights, or timm's of the default tag."""
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
