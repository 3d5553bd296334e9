import pytest

from trainables.limits import SHAPE_LATENCY, Limits

TRAINED = {"size_bytes": 1e6, "macs": 1e6, "val_accuracy": 0.8, "teacher_val_accuracy": 0.9}


@pytest.mark.parametrize(
    ("before", "after", "over"), [(0.9, 1.1, False), (1.1, 0.9, False), (1.1, 1.2, True), (0.9, 0.8, False)]
)
def test_a_latency_is_over_only_if_both_measurements_of_the_architecture_are(
    before: float, after: float, over: bool
) -> None:
    excess = Limits(max_latency_ms=1.0).excess(TRAINED | {SHAPE_LATENCY: before, "latency_p50_ms": after})
    assert (excess["max_latency_ms"] > 0) == over
    assert excess["max_latency_ms"] == pytest.approx(min(before, after) - 1)


def test_a_number_that_is_not_there_yet_sets_no_excess() -> None:
    limits = Limits(max_latency_ms=1.0, max_size_mb=0.5, max_drop=1.0)
    assert limits.excess({"size_bytes": 1e6}) == {"max_size_mb": 1.0}
    assert limits.excess({"size_bytes": 1e6} | TRAINED)["max_drop"] == pytest.approx(9.0)
