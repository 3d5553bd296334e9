"""The value of a candidate to its user as one score, in accuracy points (standard library only)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExchangeRates:
    """How many points of accuracy the user gives for speed and size."""

    latency_points: float = 1.0
    """Accuracy points that a doubling of latency must buy."""
    size_points: float = 0.5
    """Accuracy points that a doubling of the file's size must buy."""

    def __post_init__(self) -> None:
        for name in ("latency_points", "size_points"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"`{name} >= 0` must hold, but got {name}={value}.")


def composite_score(metrics: Mapping[str, float], *, teacher_size_bytes: float, rates: ExchangeRates) -> float:
    """100 * val_accuracy - latency_points * log2(latency / teacher) - size_points * log2(size / teacher), in points.

    The teacher's latency is its own p50, one number for all candidates of a sweep: a ratio of its own for each would
    add the teacher's noise. The teacher itself scores 100 times its accuracy.
    """
    # MnasNet's product with exponent -0.07 (arXiv:1807.11626) would always pick the tiniest model on an easy data set.
    latency = math.log2(metrics["latency_p50_ms"] / metrics["reference_latency_p50_ms"])
    size = math.log2(metrics["size_bytes"] / teacher_size_bytes)
    return 100 * metrics["val_accuracy"] - rates.latency_points * latency - rates.size_points * size
