"""The settings that all training stages of a candidate share: images, their augmentation, training (stdlib only)."""

import dataclasses
from dataclasses import dataclass

from trainables.config.checks import check_not_negative

CROPS = ("none", "padded", "resized")
TRAIN_PRECISIONS = ("fp32", "amp")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how train is split. Where they lie on disk is not part of it."""

    dataset: str = "digits"
    """`digits`, `cifar10`, `cifar100`, `tiny-imagenet` or `folder:PATH`."""
    image_size: int | None = None
    """Pixels of a side; None takes the data set's own size."""
    val_fraction: float = 0.1
    """Share of train cut off for validation, stratified, in (0, 1)."""
    split_seed: int = 0
    """Decides which images are validation images."""
    train_limit: int | None = None
    """Images left for training after the split, stratified; None keeps all."""
    unlabeled: str | None = None
    """FOLDER of images without labels, at any depth, that students learn beside the training split, from the teacher
    alone (alpha = 1); the teacher does not see them, and records name their digest."""

    def __post_init__(self) -> None:
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
    """`none`, `padded` (shift by up to `crop_padding` pixels) or `resized` (RandomResizedCrop)."""
    crop_padding: int = 4
    """Pixels of the stored image, which is scaled afterwards; used by `padded` only."""
    randaugment_magnitude: int | None = None
    """RandAugment strength 0 to 30 with two operations an image; None is off."""
    mixup_alpha: float | None = None
    """Beta(mixup_alpha, mixup_alpha) of Mixup, arXiv:1710.09412; None is off."""
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
    weight_decay: float = 0.01
    """Of AdamW, decoupled, wherever the student is trained, recovery and `int8_qat` included; the teacher has
    `teacher_weight_decay`."""
    label_smoothing: float = 0.05
    """Share of the label mass spread over all classes, in [0, 1)."""
    seed: int = 0
    """Weights, batch order and dropout of the student; the teacher has its own `teacher_seed`."""
    train_precision: str | None = None
    """`fp32` or `amp` (bfloat16 autocast); none is amp on a GPU and fp32 on a CPU. `precision` is that of the file to
    ship."""
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
        """The same settings with an explicit precision, as keys and records need it; `device` is `cpu` or `cuda`."""
        if self.train_precision is not None:
            return self
        return dataclasses.replace(self, train_precision="fp32" if device == "cpu" else "amp")
