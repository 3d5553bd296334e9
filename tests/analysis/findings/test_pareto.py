import doctest
import itertools

import moocore
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analysis.findings import pareto
from analysis.plots import axes
from analysis.reading import wording

# Few distinct values, so that ties and duplicates are common.
GRID = st.integers(0, 6).map(float)


def points(dimensions: int, most: int = 12) -> st.SearchStrategy[np.ndarray]:
    return st.integers(1, most).flatmap(lambda n: arrays(np.float64, (n, dimensions), elements=GRID))


def brute_force_front(array: np.ndarray) -> np.ndarray:
    return np.array([not any((q <= p).all() and (q < p).any() for q in array) for p in array])


def brute_force_volume(array: np.ndarray, reference: np.ndarray) -> float:
    """Count the unit cells below the reference that a point covers: exact for whole coordinates."""
    cells = itertools.product(*(range(int(r)) for r in reference))
    return float(sum(any((p <= cell).all() for p in array) for cell in map(np.array, cells)))


@pytest.mark.parametrize("module", [pareto, axes, wording])
def test_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


@given(st.integers(1, 4).flatmap(points))
def test_non_dominated_agrees_with_brute_force(array):
    np.testing.assert_array_equal(pareto.non_dominated(array), brute_force_front(array))


@given(points(3))
def test_duplicates_stay_together(array):
    mask = pareto.non_dominated(np.vstack([array, array]))
    np.testing.assert_array_equal(mask[: len(array)], mask[len(array) :])


@settings(max_examples=50)
@given(st.integers(1, 3).flatmap(points))
def test_hypervolume_agrees_with_counted_cells(array):
    reference = np.full(array.shape[1], 5.0)
    assert pareto.hypervolume(array, reference) == pytest.approx(brute_force_volume(array, reference))


@given(arrays(np.float64, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(-5, 5)))
def test_agrees_with_moocore_on_floats(array):
    assert pareto.hypervolume(array, [4, 4, 4]) == moocore.hypervolume(array, ref=[4, 4, 4])
    np.testing.assert_array_equal(pareto.non_dominated(array), moocore.is_nondominated(array, keep_weakly=True))


@given(points(3))
def test_only_the_front_carries_hypervolume(array):
    front = array[pareto.non_dominated(array)]
    assert pareto.hypervolume(front, [7, 7, 7]) == pytest.approx(pareto.hypervolume(array, [7, 7, 7]))


@settings(max_examples=30)
@given(points(2))
def test_hypervolume_over_trials_is_the_hypervolume_of_every_prefix(array):
    expected = [pareto.hypervolume(array[: n + 1], [6, 6]) for n in range(len(array))]
    actual = pareto.hypervolume_over_trials(array, [6, 6])
    np.testing.assert_allclose(actual, expected)
    assert (np.diff(actual) >= 0).all()


def test_one_point_spans_a_box_and_the_reference_itself_nothing():
    assert pareto.hypervolume([[1, 2, 3]], [4, 4, 4]) == 3 * 2 * 1
    assert pareto.hypervolume([[4, 4, 4]], [4, 4, 4]) == 0
    assert pareto.hypervolume([[5, 0, 0]], [4, 4, 4]) == 0
    assert pareto.hypervolume(np.empty((0, 3)), [4, 4, 4]) == 0
    assert len(pareto.non_dominated(np.empty((0, 3)))) == 0


def test_normalised_prefers_the_latency_taken_beside_the_candidate():
    frame = pd.DataFrame(
        {
            "val_accuracy": [0.9, 0.9, np.nan],
            "latency_p50_ms": [1.0, 1.0, 0.0],
            "reference_latency_p50_ms": [2.0, np.nan, 2.0],
            "size_bytes": [1e6, 4e6, 2e6],
        }
    )
    scaled = pareto.normalised(frame, {"latency_p50_ms": 8.0, "size_bytes": 2e6})
    np.testing.assert_allclose(scaled["error_points"], [10, 10, np.nan])
    np.testing.assert_allclose(scaled["log2_latency_vs_teacher"], [-1, -3, np.nan])
    np.testing.assert_allclose(scaled["log2_size_vs_teacher"], [-1, 1, 0])


def test_objectives_leave_out_what_is_not_finite():
    frame = pd.DataFrame({"up": [1.0, np.nan, 2.0, 3.0], "down": [1.0, 1.0, np.inf, 0.0]}, index=list("abcd"))
    kept = pareto.objectives(frame, {"up": "maximize", "down": "minimize"})
    assert kept.to_dict("index") == {"a": {"up": -1.0, "down": 1.0}, "d": {"up": -3.0, "down": 0.0}}


def test_knee_of_one_point_and_of_a_flat_axis():
    assert pareto.knee([[3, 4]]) == 0
    assert pareto.knee([[1, 7], [0, 7]]) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pareto.objectives(pd.DataFrame({"a": [1]}), {"a": "down"}), "direction='down'"),
        (lambda: pareto.objectives(pd.DataFrame({"a": [1]}), {"b": "minimize"}), "objective b is no column"),
        (lambda: pareto.non_dominated([[1, 2], [np.nan, 1]]), "row 1 is not"),
        (lambda: pareto.non_dominated([1, 2]), r"shape \(2,\)"),
        (lambda: pareto.hypervolume([[1, 2]], [3]), r"2 finite coordinates, but got reference=\[3\]"),
        (lambda: pareto.knee([]), "at least one point"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
