"""Sliders: their ends hold every candidate, a loose end excludes nobody, a limit stays when ends move."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.serving.limits import LIMITS, STEPS, Ends, ends_of, fitting, goal_of, moved, said

LATENCY, SIZE, ACCURACY = LIMITS
POSITIVE = st.floats(1e-4, 1e4)


def candidates(latencies: list[float], sizes: list[float], accuracies: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"latency_p50_ms": latencies, "size_bytes": sizes, "val_accuracy": accuracies})


@settings(deadline=None)
@given(st.lists(st.tuples(POSITIVE, st.floats(1e3, 1e9), st.floats(0, 1)), min_size=1, max_size=20))
def test_the_ends_hold_everyone_and_loose_sliders_exclude_nobody(rows: list[tuple[float, float, float]]) -> None:
    frame = candidates(*map(list, zip(*rows, strict=True)))
    ends = [ends_of(limit, frame) for limit in LIMITS]
    for limit, end in zip(LIMITS, ends, strict=True):
        values = limit.factor * frame[limit.column]
        slack = 1e-6 * end.high
        assert end.low < end.high and values.max() <= end.high + slack
        assert values.min() >= end.low - slack or (limit.at_most and end.low == end.step)
        assert (end.high - end.low) / end.step <= 2.1 * STEPS
    loose = tuple(end.loose(limit) for limit, end in zip(LIMITS, ends, strict=True))
    assert goal_of(loose, frame).given() == {}
    assert len(fitting(frame, goal_of(loose, frame))) == len(frame)


@settings(deadline=None)
@given(st.lists(POSITIVE, min_size=2, max_size=20, unique=True), st.floats(0, 1))
def test_a_limit_keeps_those_within_it(latencies: list[float], share: float) -> None:
    frame = candidates(latencies, [1e6] * len(latencies), [0.9] * len(latencies))
    ends = ends_of(LATENCY, frame)
    limit = ends.low + share * (ends.high - ends.low)
    fits = fitting(frame, goal_of((limit, None, None), frame))
    if limit == pytest.approx(ends.high):
        return  # a loose slider limits nothing
    values = frame["latency_p50_ms"]  # a slider's value has nine digits
    assert set(frame.index[values <= limit * (1 - 1e-8)]) <= set(fits.index) <= set(frame.index[values <= limit])


def test_accuracy_is_in_percent_and_bounds_from_below() -> None:
    frame = candidates([1, 2], [1e6, 2e6], [0.80, 0.95])
    assert goal_of((None, None, "90"), frame).given() == {"min_accuracy": 0.9}
    assert list(fitting(frame, goal_of((None, None, "90"), frame)).index) == [1]
    assert goal_of(("1.5", None, None), frame).given() == {"max_latency_ms": 1.5}


def test_a_loose_end_stays_loose_and_a_limit_stays_what_it_is() -> None:
    ends = Ends(low=0.5, high=8.0, step=0.5)
    assert moved(LATENCY, 4.0, (1.0, 4.0), ends) == 8.0
    assert moved(LATENCY, "3", (1.0, 4.0), ends) == 3.0
    assert moved(ACCURACY, 1.0, (1.0, 4.0), ends) == 0.5
    assert moved(ACCURACY, None, (None, None), ends) == 0.5
    assert moved(LATENCY, 9.0, (1.0, 20.0), ends) == 8.0


def test_without_a_candidate_sliders_have_ends_all_the_same() -> None:
    none = candidates([], [], [])
    assert ends_of(SIZE, none).low < ends_of(SIZE, none).high
    assert fitting(none, goal_of((None, None, None), none)).empty


def test_a_value_is_said_with_its_unit() -> None:
    ends = Ends(low=0.5, high=8.0, step=0.5)
    assert said(LATENCY, "2.5", ends) == "2.5 ms"
    assert said(LATENCY, 8, ends) == said(ACCURACY, 0.5, ends) == "no limit"
