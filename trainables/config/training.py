"""The settings that all training stages of a candidate share (standard library only)."""

import dataclasses
from dataclasses import dataclass

from trainables.config.checks import check_not_negative

TRAIN_PRECISIONS = ("fp32", "amp")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What the training stages of a candidate have in common."""

    batch_size: int = 128
    """Images a step."""
    weight_decay: float = 1e-4
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
