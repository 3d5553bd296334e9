"""The objectives of a search: directions, units, and the values that Optuna gets."""

from collections.abc import Mapping

from trainables.config.score import ExchangeRates, composite_score

__all__ = ["DIRECTIONS", "UNITS", "ExchangeRates", "composite_score"]

DIRECTIONS = {"val_accuracy": "maximize", "latency_p50_ms": "minimize", "size_bytes": "minimize"}
UNITS = {"val_accuracy": "share of images, 0 to 1", "latency_p50_ms": "milliseconds", "size_bytes": "bytes"}


def study_directions(objective: str) -> list[str]:
    """Optuna's direction for each of `study_values`."""
    return list(DIRECTIONS.values()) if objective == "pareto" else ["maximize"]


def study_values(objective: str, metrics: Mapping[str, float], score: float) -> list[float]:
    """Optuna's values of a finished candidate: its score, or accuracy, latency and size as measured."""
    return [metrics[name] for name in DIRECTIONS] if objective == "pareto" else [score]


def reference_point(num_classes: int) -> dict[str, float]:
    """The reference point of the hypervolume, fixed before the first trial.

    It has the accuracy of guessing, and twice the teacher's latency and size.
    """
    return {
        "error_points": 100 * (1 - 1 / num_classes),
        "log2_latency_vs_teacher": 1.0,
        "log2_size_vs_teacher": 1.0,
    }
