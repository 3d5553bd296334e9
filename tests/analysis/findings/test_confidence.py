import doctest

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.findings import attainment as attainment_module
from analysis.findings import confidence
from analysis.findings.attainment import attainment
from analysis.findings.confidence import Z_95, may_be_optimal, variance_of


def candidates(*rows: tuple[float, float, float], **more: object) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["val_accuracy", "latency_p50_ms", "size_bytes"])
    return frame.assign(**{"num_val": 1000, **more})


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(confidence).attempted > 0
    assert doctest.testmod(confidence).failed == 0


@pytest.mark.parametrize(("lead", "possible"), [(0.9, True), (1.1, False)])
def test_a_lead_counts_from_the_95_percent_interval_of_a_difference_on(lead: float, possible: bool) -> None:
    accuracy = 0.9
    step = lead * Z_95 * np.sqrt(2 * accuracy * (1 - accuracy) / 1000)  # both variances are nearly those at 0.9
    frame = candidates((accuracy + step / 2, 1.0, 1e6), (accuracy - step / 2, 1.0, 1e6))
    assert may_be_optimal(frame).tolist() == [True, possible]


def test_a_smaller_or_faster_candidate_is_never_ruled_out() -> None:
    assert may_be_optimal(candidates((0.99, 2.0, 2e6), (0.5, 1.9, 2e6), (0.5, 2.0, 1e6))).all()


def test_within_what_the_clock_can_tell_a_worse_one_is_ruled_out_though_it_is_on_the_front() -> None:
    frame = candidates((0.99, 1.000, 1e6), (0.80, 0.999, 1e6))
    assert may_be_optimal(frame).tolist() == [True, True]
    assert may_be_optimal(frame.assign(latency_half_width=0.01)).tolist() == [True, False]


def test_without_counts_an_accuracy_is_exact() -> None:
    frame = candidates((0.9001, 1.0, 1e6), (0.9, 1.0, 1e6)).drop(columns="num_val")
    assert may_be_optimal(frame).tolist() == [True, False]
    assert may_be_optimal(frame.iloc[:0]).empty


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(
        st.tuples(st.sampled_from([0.5, 0.6, 0.7, 0.9]), st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([1e6, 2e6])),
        min_size=1,
        max_size=8,
    )
)
def test_agrees_with_asking_every_pair(rows: list[tuple[float, float, float]]) -> None:
    frame = candidates(*rows, num_val=60)
    variance = variance_of(frame["val_accuracy"].to_numpy(), frame["num_val"].to_numpy(dtype=float))
    expected = []
    for i, (accuracy, latency, size) in enumerate(rows):
        rules_out = [
            p - accuracy > Z_95 * np.sqrt(variance[j] + variance[i]) and t <= latency and s <= size
            for j, (p, t, s) in enumerate(rows)
        ]
        expected.append(not any(rules_out))
    assert may_be_optimal(frame).tolist() == expected


def test_attainment_of_equal_candidates_is_that_candidate_at_every_level() -> None:
    surfaces = attainment(candidates(*[(0.9, 2.0, 1e6)] * 6))
    assert surfaces["level"].tolist() == list(attainment_module.LEVELS)
    assert surfaces["val_accuracy"].tolist() == [0.9] * 3
    assert surfaces["latency_p50_ms"].tolist() == [2.0] * 3


def test_a_lucky_trial_carries_the_rare_surface_but_not_the_usual_one() -> None:
    """One of six trials is missing in (5/6)^6 = 33 % of the resamples: the median has it, 95 % of them have not."""
    surfaces = attainment(candidates((0.99, 1.0, 1e6), *[(0.5, 1.0, 1e6)] * 5), resamples=400)
    best = surfaces.groupby("level")["val_accuracy"].max()
    assert best.tolist() == [0.99, 0.99, 0.5]
