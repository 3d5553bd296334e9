import pandas as pd
import pytest

from analysis.findings.selecting import Goal, excess_over, select
from tests.analysis.conftest import DIRECTIONS

FRAME = pd.DataFrame(
    {
        "val_accuracy": [0.95, 0.93, 0.94, 0.80],
        "latency_p50_ms": [4.0, 2.0, 4.5, 1.0],
        "size_bytes": [4e6, 2e6, 4e6, 1e6],
    },
    index=["slow", "middle", "dominated", "fast"],
)


@pytest.mark.parametrize(
    ("goal", "best", "runner_up"),
    [
        (Goal(), "slow", "middle"),
        (Goal(max_latency_ms=3), "middle", "fast"),
        (Goal(max_size_mb=1), "fast", None),
        (Goal(min_accuracy=0.93, max_latency_ms=4), "slow", "middle"),
        (Goal(min_accuracy=0.94), "slow", "dominated"),
        (Goal(max_latency_ms=4.0, max_size_mb=4.0, min_accuracy=0.95), "slow", None),
    ],
)
def test_the_most_accurate_that_fits_and_the_next_that_is_cheaper(goal: Goal, best: str, runner_up: str | None) -> None:
    choice = select(FRAME, goal, DIRECTIONS)
    assert (choice.best, choice.runner_up, choice.nearest) == (best, runner_up, None)


def test_nearest_miss_and_what_it_would_take() -> None:
    choice = select(FRAME, Goal(max_latency_ms=1.8, min_accuracy=0.9), DIRECTIONS)
    assert (choice.best, choice.fitting) == (None, 0)
    assert choice.nearest == "middle" or choice.nearest == "fast"
    assert choice.would_take == {"max_latency_ms": (2.0, "middle"), "min_accuracy": (0.8, "fast")}
    excess = excess_over(FRAME, Goal(max_latency_ms=1.8, min_accuracy=0.9)).max(axis=1)
    assert choice.nearest == excess.idxmin()


def test_where_two_limits_are_in_the_way_no_single_one_is_named() -> None:
    choice = select(FRAME, Goal(max_latency_ms=0.5, max_size_mb=0.5), DIRECTIONS)
    assert choice.nearest == "fast"
    assert choice.would_take == {}


def test_what_it_would_take_is_enough() -> None:
    goal = {"max_latency_ms": 0.9, "max_size_mb": 2.0}
    choice = select(FRAME, Goal(**goal), DIRECTIONS)
    for name, (value, run_id) in choice.would_take.items():
        assert select(FRAME, Goal(**{**goal, name: value}), DIRECTIONS).best == run_id


def test_equal_accuracy_goes_to_the_faster() -> None:
    frame = FRAME.assign(val_accuracy=0.9)
    assert select(frame, Goal(), DIRECTIONS).best == "fast"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_latency_ms": 0}, "got max_latency_ms=0"),
        ({"max_size_mb": -1}, "got max_size_mb=-1"),
        ({"max_latency_ms": float("inf")}, "got max_latency_ms=inf"),
        ({"max_latency_ms": float("nan")}, "got max_latency_ms=nan"),
        ({"min_accuracy": 90}, r"0.9 for 90 %.*got min_accuracy=90"),
    ],
)
def test_limits_out_of_range_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Goal(**values)


def test_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="at least one finished candidate"):
        select(FRAME.iloc[:0], Goal(), DIRECTIONS)
