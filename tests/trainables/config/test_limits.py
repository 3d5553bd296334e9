import pytest

from trainables.config.limits import SHAPE_LATENCY, Limits

TRAINED = {"size_bytes": 1e6, "macs": 1e6, "val_accuracy": 0.8, "teacher_val_accuracy": 0.9}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0.9, 1.05, -0.0454), (1.1, 0.9, -0.1), (1.1, 1.2, 0.1), (0.9, 0.8, -0.2), (0.9, 1.32, 0.2)],
    ids=["noise", "faster now", "over both times", "under both times", "over by more than noise"],
)
def test_a_latency_that_was_kept_before_training_is_over_by_more_than_noise_or_not(
    before: float, after: float, expected: float
) -> None:
    excess = Limits(max_latency_ms=1.0).excess(TRAINED | {SHAPE_LATENCY: before, "latency_p50_ms": after})
    assert excess["max_latency_ms"] == pytest.approx(expected, abs=1e-3)


def test_a_number_that_is_not_there_yet_sets_no_excess() -> None:
    limits = Limits(max_latency_ms=1.0, max_size_mb=0.5, max_drop=1.0)
    assert limits.excess({"size_bytes": 1e6}) == {"max_size_mb": 1.0}
    assert limits.excess({"size_bytes": 1e6} | TRAINED)["max_drop"] == pytest.approx(9.0)
