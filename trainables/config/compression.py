"""How a student is pruned, and the file to ship is written and timed: three parts of a candidate's configuration."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from trainables.config.checks import at_default, check_epochs, check_positive, check_word
from trainables.config.escaping import hide_password

PRUNING_METHODS = ("l1_unstructured", "structured", "l1_global", "nm_2_4")
PRUNING_CRITERIA = ("magnitude", "lamp", "taylor", "bn_scale")
PRUNING_SCOPES = ("layer", "global", "sensitivity")
PRUNED_SHARES = ("channels", "macs", "size", "latency")
RECOVERY_BUDGETS = ("epochs", "time")
# An epoch of networks cut by 0.5, 0.6, 0.7, 0.8 and 0.85 takes 0.33, 0.2, 0.12, 0.07 and 0.05 of the uncut one's time
# (AlexNet on two cores): a part that no cut saves, and this power of the width that is left.
FIXED_SHARE, WIDTH_POWER = 0.015, 1.75
# The labels alone teach a cut of 0.85 5 points more in 200 epochs than in 80 (LOG.md, 2026-11-30, "deep cuts"); soft
# labels of as many views would cost more than the training.
MOST_TIMES, MOST_TIMES_TAUGHT = 20.0, 8.0
PRECISIONS = ("fp32", "fp16", "int8_ptq", "int8_qat")
LATENCY_RUNTIMES = ("onnxruntime_cpu", "onnxruntime_cuda", "tensorrt", "openvino")
# None of its parts can be taken for an option of ssh.
ADDRESS = r"ssh://(\w[\w.-]*@)?(\w[\w.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How the student is pruned and recovered."""

    pruning_method: str = "structured"
    """`structured` removes channels: smaller and mostly faster. The others zero weights, which is neither:
    `l1_unstructured` the smallest of every convolution, `l1_global` of all convolutions, `nm_2_4` two of every four."""
    pruning_ratio: float = 0.3
    """Fraction removed, in [0, 1): of what `pruning_of` says, or of Conv2d weights; `nm_2_4` always zeroes half.
    0 removes nothing; the recovery epochs still run."""
    pruning_criterion: str = "magnitude"
    """What `structured` keeps: channels of large weights (`magnitude`; `lamp` makes layers comparable), those that
    the loss needs (`taylor`), or of large BatchNorm scale (`bn_scale`)."""
    pruning_scope: str = "layer"
    """`layer` removes the same share of every layer's channels, `global` the worst of the whole network; `sensitivity`
    removes as much work as `layer` would, where it moves the network's answers least (measured on training images)."""
    pruning_steps: int = 1
    """`structured` only: cuts on the way to `pruning_ratio`, each followed by its share of `recovery_epochs`."""
    pruning_of: str = "channels"
    """What `structured` removes a fraction of: `channels` of every layer, or the dense student's `macs`, `size` (file
    bytes) or `latency` (p50); the last three find the channel ratio by bisection on the untrained student."""
    prune_ignore: str = ""
    """`structured` only: layers that keep all channels, by name or pattern, such as `conv1,layer1.*`; channels that are
    coupled with theirs stay, too."""
    recovery_epochs: int = 12
    """Passes over the training split after pruning, with the distillation loss of the student."""
    recovery_budget: str = "epochs"
    """`epochs`: as many for every network. `time`: as many as take the time of `recovery_epochs` of an uncut one, at
    most 20 times as many, with a teacher 8 times; a network that `structured` leaves half of its channels gets 3.2
    times as many."""
    recovery_learning_rate_factor: float = 1.0
    """Peak learning rate of recovery as a multiple of `learning_rate`, > 0."""

    def __post_init__(self) -> None:
        check_word("pruning_method", self.pruning_method, PRUNING_METHODS)
        check_word("pruning_criterion", self.pruning_criterion, PRUNING_CRITERIA)
        check_word("pruning_scope", self.pruning_scope, PRUNING_SCOPES)
        check_word("pruning_of", self.pruning_of, PRUNED_SHARES)
        check_word("recovery_budget", self.recovery_budget, RECOVERY_BUDGETS)
        if not 0 <= self.pruning_ratio < 1:
            raise ValueError(f"`0 <= pruning_ratio < 1` must hold, but got pruning_ratio={self.pruning_ratio}.")
        if self.pruning_steps < 1:
            raise ValueError(f"`pruning_steps >= 1` must hold, but got pruning_steps={self.pruning_steps}.")
        if self.pruning_of != "channels" and self.pruning_scope == "global":
            raise ValueError(
                f"pruning_scope='global' finds its shape in the trained weights, but pruning_of={self.pruning_of!r} "
                "asks for one before training; take pruning_of='channels' or pruning_scope='layer'."
            )
        check_epochs("recovery_epochs", self.recovery_epochs)
        check_positive("recovery_learning_rate_factor", self.recovery_learning_rate_factor)

    @property
    def ignored(self) -> tuple[str, ...]:
        """The patterns of `prune_ignore`."""
        return tuple(pattern.strip() for pattern in self.prune_ignore.split(",") if pattern.strip())

    @property
    def removes_channels(self) -> bool:
        """Whether the pruned network is narrower than the dense one."""
        return self.pruning_method == "structured" and self.pruning_ratio > 0

    @property
    def shape_needs_weights(self) -> bool:
        """Whether the pruned widths depend on the trained weights, so that they are unknown before training."""
        return self.removes_channels and self.pruning_scope != "layer"

    def epochs_of_cuts(self) -> list[int]:
        """Epochs after each cut, in equal parts; the remainder goes to the last."""
        part = self.recovery_epochs // self.pruning_steps
        return [part] * (self.pruning_steps - 1) + [self.recovery_epochs - part * (self.pruning_steps - 1)]

    def epochs_factor(self, *, taught: bool) -> float:
        """How many times as many epochs as an uncut network this one takes after the cut, by `recovery_budget`.

        Args:
            taught: whether it needs soft labels.

        Example:
            >>> PruneConfig(recovery_budget="time", pruning_ratio=0.5).epochs_factor(taught=True)  # doctest: +ELLIPSIS
            3.24...
        """
        if self.recovery_budget == "epochs" or not self.removes_channels:
            return 1.0
        left = 1 - self.pruning_ratio
        # multiply-accumulates, bytes and latency shrink with the square of the width
        width = left if self.pruning_of == "channels" else left**0.5
        time_left = FIXED_SHARE + (1 - FIXED_SHARE) * width**WIDTH_POWER
        return min(MOST_TIMES_TAUGHT if taught else MOST_TIMES, float(1 / time_left))

    def inert(self) -> frozenset[str]:
        """Settings that have no effect given the others.

        At ratio 0 all methods remove nothing; methods that zero weights read no channel settings; 2:4 has no ratio.
        """
        if self.removes_channels:
            return frozenset()
        of_channels = frozenset({"pruning_criterion", "pruning_scope", "pruning_steps", "pruning_of", "prune_ignore"})
        if self.pruning_ratio == 0:
            return of_channels | {"pruning_method"}
        return of_channels | {"pruning_ratio"} if self.pruning_method == "nm_2_4" else of_channels

    def canonical(self) -> "PruneConfig":
        """The same pruning with inert settings at their defaults."""
        plain = dataclasses.replace(self, **at_default(PruneConfig, self.inert()))
        if plain.pruning_method == "nm_2_4":
            # 2:4 always zeroes half; the default of 0.3 would be wrong in every report
            return dataclasses.replace(plain, pruning_ratio=0.5)
        # LAMP only rescales scores between layers: within one layer it ranks channels as magnitude does
        if plain.pruning_criterion == "lamp" and plain.pruning_scope != "global":
            return dataclasses.replace(plain, pruning_criterion="magnitude")
        return plain


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How the file to ship is written."""

    opset: int = 20
    """ONNX operator set; 18 to 22 are written, older ones are not supported by the exporter."""
    precision: str = "fp32"
    """Precision of the ONNX file: `fp32`, `fp16`, `int8_ptq` (quantised after training) or `int8_qat` (trained on with
    quantisation in the loop first). What INT8 costs or gains is measured, never assumed."""
    calibration_images: int = 256
    """Training images that set INT8's ranges, > 0."""
    int8_tolerance: float = 0.01
    """Validation accuracy that an `int8_ptq` file may lose against FP32, 0 to 1; if it loses more, the layers that INT8
    harms most, at most half of them, are kept in float. 1 keeps none."""
    qat_epochs: int = 1
    """Passes over the training split of `int8_qat`, with the student's distillation loss; > 0."""

    def __post_init__(self) -> None:
        if not 18 <= self.opset <= 22:
            raise ValueError(f"`18 <= opset <= 22` must hold, but got opset={self.opset}.")
        if self.precision == "amp":
            raise ValueError("precision='amp' is no precision of a file; train_precision=amp trains in it.")
        check_word("precision", self.precision, PRECISIONS)
        if self.calibration_images < 1:
            raise ValueError(
                f"`calibration_images >= 1` must hold, but got calibration_images={self.calibration_images}."
            )
        if not 0 <= self.int8_tolerance <= 1:
            raise ValueError(f"`0 <= int8_tolerance <= 1` must hold, but got int8_tolerance={self.int8_tolerance}.")
        if self.qat_epochs < 1:
            raise ValueError(f"`qat_epochs >= 1` must hold, but got qat_epochs={self.qat_epochs}.")

    def inert(self) -> frozenset[str]:
        """Settings that have no effect at this precision."""
        if self.precision == "int8_qat":
            return frozenset({"int8_tolerance"})
        if self.precision == "int8_ptq":
            return frozenset({"qat_epochs"})
        return frozenset({"qat_epochs", "calibration_images", "int8_tolerance"})

    def canonical(self) -> "ExportConfig":
        """The same export with inert settings at their defaults."""
        return dataclasses.replace(self, **at_default(ExportConfig, self.inert()))


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """How the exported file is timed."""

    latency_runtime: str = "onnxruntime_cpu"
    """What runs the file."""
    latency_threads: int = 1
    """CPU threads of the runtime."""
    latency_max_attempts: int = 3
    """Times that one file is measured at most while other work disturbs it; the least disturbed counts."""
    latency_seconds: float = 2.0
    """Time spent on timing one file, at most; less if its p50 is known within 2 % before, up to four times that if its
    calls are too slow for 8 blocks."""
    measure_on: str | None = None
    """ssh://[USER@]HOST[:PORT] of the machine that times the files; it needs python3, onnxruntime and numpy, and lets
    this one (in a cluster, every node) in with a key. Accuracy is measured here (default: here)."""

    def __post_init__(self) -> None:
        if self.measure_on is not None:
            self._check_elsewhere(self.measure_on)
        if self.latency_runtime not in LATENCY_RUNTIMES:
            known, value = ", ".join(LATENCY_RUNTIMES), self.latency_runtime
            raise ValueError(f"`latency_runtime` must be one of {known}, but got latency_runtime={value!r}.")
        if self.latency_threads < 1:
            raise ValueError(f"`latency_threads >= 1` must hold, but got latency_threads={self.latency_threads}.")
        if self.latency_max_attempts < 1:
            raise ValueError(
                f"`latency_max_attempts >= 1` must hold, but got latency_max_attempts={self.latency_max_attempts}."
            )
        check_positive("latency_seconds", self.latency_seconds)

    def _check_elsewhere(self, address: str) -> None:
        if not re.fullmatch(ADDRESS, address, re.ASCII):
            shown = hide_password(address)
            raise ValueError(f"measure_on={shown}: must be ssh://[USER@]HOST[:PORT], such as ssh://pi@raspberrypi.")
        if self.latency_runtime != "onnxruntime_cpu":
            raise ValueError(
                f"measure_on={address} and latency_runtime={self.latency_runtime}: another machine has onnxruntime_cpu"
                " alone; leave one of them out."
            )

    def key_parts(self) -> dict[str, Any]:
        """The settings for store keys; `latency_max_attempts`, which older keys lack, is left out at its default.

        So is `measure_on`: keys hold what is there, its processor.
        """
        row = {name: value for name, value in vars(self).items() if name != "measure_on"}
        if self.latency_max_attempts == MeasureConfig.latency_max_attempts:
            del row["latency_max_attempts"]
        return row
