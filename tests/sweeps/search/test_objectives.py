import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.search.objectives import DIRECTIONS, UNITS, reference_point
from trainables.config.score import ExchangeRates, composite_score

TEACHER_SIZE = 44_700_000
TEACHER = {
    "val_accuracy": 0.956,
    "latency_p50_ms": 4.1,
    "reference_latency_p50_ms": 4.1,
    "size_bytes": TEACHER_SIZE,
}
positive = st.floats(1e-3, 1e3)
accuracies = st.floats(0, 1)


def score(rates: ExchangeRates | None = None, **changes: float) -> float:
    return composite_score(TEACHER | changes, teacher_size_bytes=TEACHER_SIZE, rates=rates or ExchangeRates())


@pytest.mark.parametrize("points", [0.0, 0.5, 3.0])
def test_the_teachers_own_score_is_its_accuracy_in_points(points: float) -> None:
    assert score(ExchangeRates(latency_points=points, size_points=points)) == pytest.approx(95.6)


@given(points=st.floats(0, 100))
def test_halving_latency_is_worth_latency_points_and_halving_size_size_points(points: float) -> None:
    latency, size = ExchangeRates(latency_points=points), ExchangeRates(size_points=points)
    assert score(latency, latency_p50_ms=4.1 / 2) - score(latency) == pytest.approx(points)
    assert score(size, size_bytes=TEACHER_SIZE / 2) - score(size) == pytest.approx(points)
    assert score(latency, latency_p50_ms=4.1 * 2) - score(latency) == pytest.approx(-points)


def test_rates_of_zero_leave_accuracy_alone() -> None:
    free = ExchangeRates(latency_points=0, size_points=0)
    assert score(free, latency_p50_ms=400, size_bytes=1) == pytest.approx(95.6)


@given(latency=positive, reference=positive, slowdown=positive)
def test_only_the_ratio_to_the_teachers_latency_counts(latency: float, reference: float, slowdown: float) -> None:
    quiet = score(latency_p50_ms=latency, reference_latency_p50_ms=reference)
    busy = score(latency_p50_ms=latency * slowdown, reference_latency_p50_ms=reference * slowdown)
    assert busy == pytest.approx(quiet)


@given(accuracy=accuracies, latency=positive, size=st.floats(1e3, 1e9), factor=st.floats(1 - 1e-6, 1 + 1e-6))
def test_no_jump_anywhere_not_even_at_the_teacher(accuracy: float, latency: float, size: float, factor: float) -> None:
    for start in ({}, {"val_accuracy": accuracy, "latency_p50_ms": latency, "size_bytes": size}):
        here = TEACHER | start
        moved = {name: here[name] * factor for name in ("val_accuracy", "latency_p50_ms", "size_bytes")}
        assert abs(score(**here) - score(**(here | moved))) < 1e-3


@given(st.lists(st.tuples(accuracies, positive, st.floats(1e3, 1e9)), min_size=2, max_size=2))
def test_who_is_better_in_everything_scores_no_less(pair: list[tuple[float, float, float]]) -> None:
    names = ("val_accuracy", "latency_p50_ms", "size_bytes")
    best = (max(p[0] for p in pair), min(p[1] for p in pair), min(p[2] for p in pair))
    for point in pair:
        assert score(**dict(zip(names, best, strict=True))) >= score(**dict(zip(names, point, strict=True)))


@pytest.mark.parametrize("name", ["latency_points", "size_points"])
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_rates_must_be_finite_and_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} >= 0.*{name}={value}"):
        ExchangeRates(**{name: value})


@pytest.mark.parametrize(("num_classes", "error"), [(2, 50.0), (10, 90.0), (100, 99.0)])
def test_the_reference_point_is_guessing_at_twice_the_teacher(num_classes: int, error: float) -> None:
    point = reference_point(num_classes)
    assert point["error_points"] == pytest.approx(error)
    assert {point["log2_latency_vs_teacher"], point["log2_size_vs_teacher"]} == {1.0}


def test_every_objective_has_a_direction_and_a_unit() -> None:
    assert DIRECTIONS.keys() == UNITS.keys()
    assert set(DIRECTIONS.values()) == {"maximize", "minimize"}
