"""What a candidate is worth to its user: one score in accuracy points."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

DIRECTIONS = {"val_accuracy": "maximize", "latency_p50_ms": "minimize", "size_bytes": "minimize"}
UNITS = {"val_accuracy": "share of images, 0 to 1", "latency_p50_ms": "milliseconds", "size_bytes": "bytes"}


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

    The teacher's latency is the one timed in alternation with this candidate, so that a slow minute of the machine
    cancels. The teacher's own score is 100 times its accuracy. (MnasNet's product with exponent -0.07,
    arXiv:1807.11626, would always take the tiniest model on an easy data set.)
    """
    latency = math.log2(metrics["latency_p50_ms"] / metrics["reference_latency_p50_ms"])
    size = math.log2(metrics["size_bytes"] / teacher_size_bytes)
    return 100 * metrics["val_accuracy"] - rates.latency_points * latency - rates.size_points * size


def study_directions(objective: str) -> list[str]:
    """What Optuna is told to do with `study_values`."""
    return list(DIRECTIONS.values()) if objective == "pareto" else ["maximize"]


def study_values(objective: str, metrics: Mapping[str, float], score: float) -> list[float]:
    """What Optuna is told of a finished candidate: its score, or accuracy, latency and size as they are."""
    return [metrics[name] for name in DIRECTIONS] if objective == "pareto" else [score]


def reference_point(num_classes: int) -> dict[str, float]:
    """The corner that hypervolume is measured from, fixed before the first trial.

    Guessing in accuracy, twice the teacher in latency and size.
    """
    return {
        "error_points": 100 * (1 - 1 / num_classes),
        "log2_latency_vs_teacher": 1.0,
        "log2_size_vs_teacher": 1.0,
    }
