import numpy as np
import pandas as pd
import pytest

from analysis.findings.front import mark_front
from analysis.reading.facts import stood_still
from analysis.reading.pooling import pool_latencies, pooled
from analysis.reading.rows import Row, busy_seconds

DIRECTIONS = {"val_accuracy": "maximize", "latency_p50_ms": "minimize", "size_bytes": "minimize"}


def trials(p50_ms: list[float], *, verdict: str = "clean", shape: str = "a", half_width: float = 0.02) -> pd.DataFrame:
    """Finished trials of one shape, the first the most accurate."""
    count = len(p50_ms)
    return pd.DataFrame(
        {
            "sweep": "night",
            "stage": "candidate",
            "status": "finished",
            "val_accuracy": np.linspace(0.9, 0.8, count),
            "size_bytes": 1e6,
            "latency_p50_ms": p50_ms,
            "latency_p90_ms": np.multiply(p50_ms, 1.1),
            "latency_half_width": half_width,
            "latency_vs_teacher": np.divide(p50_ms, 4),
            "latency_vs_teacher_half_width": half_width,
            "latency_shape": shape,
            "latency_device": "cpu:1",
            "latency_provider": "CPU",
            "latency_verdict": verdict,
        }
    )


def test_files_of_one_shape_have_one_p50_and_only_the_most_accurate_is_on_the_front() -> None:
    """By their own measurements, each would be on it: the less accurate, the faster by noise."""
    frame = trials([1.02, 1.01, 1.0, 0.99])
    assert mark_front(frame, DIRECTIONS)["pareto"].all()
    one = pool_latencies(frame)
    assert one["latency_p50_ms"].tolist() == pytest.approx([1.005] * 4, abs=1e-3)
    assert one["latency_vs_teacher"].tolist() == pytest.approx([1.005 / 4] * 4, abs=1e-3)
    assert one["latency_own_p50_ms"].tolist() == [1.02, 1.01, 1.0, 0.99]
    assert one["latency_pooled"].tolist() == [4] * 4
    assert one["latency_p90_ms"].nunique() == 1
    assert mark_front(one, DIRECTIONS)["pareto"].tolist() == [True, False, False, False]


@pytest.mark.parametrize(("count", "expected"), [(1, 0.02), (4, 0.01), (16, 0.005)])
def test_the_interval_narrows_with_each_trial(count: int, expected: float) -> None:
    frame = pool_latencies(trials([1.0 + 1e-6 * number for number in range(count)]))
    assert frame["latency_half_width"].tolist() == pytest.approx([expected] * count, rel=1e-3)


def test_a_measurement_that_two_rows_share_counts_once() -> None:
    """The uncut copy of a teacher has the teacher's own."""
    frame = pool_latencies(trials([1.0, 1.0]))
    assert frame["latency_half_width"].tolist() == pytest.approx([0.02] * 2)
    assert frame["latency_pooled"].tolist() == [1, 1]


def test_an_interval_is_as_wide_as_measurements_spread() -> None:
    """If they contradict each other, their own intervals are too narrow."""
    assert pooled(np.array([0.9, 1.1]), np.full(2, 0.01))[1] == pytest.approx(1.96 * 0.1, rel=0.05)


def test_the_true_value_lies_in_the_interval_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(0)
    found = [pooled(rng.normal(1, 0.02 / 1.96, size=6), np.full(6, 0.02)) for _ in range(400)]
    assert np.mean([abs(mean - 1) <= mean * half_width for mean, half_width in found]) > 0.92


def test_shapes_devices_and_sweeps_stay_apart_and_only_clean_measurements_count() -> None:
    apart = pd.concat([trials([1.0, 1.1]), trials([2.0], shape="b"), trials([3.0]).assign(sweep="day")])
    assert pool_latencies(apart.reset_index(drop=True))["latency_p50_ms"].round(2).tolist() == [1.05, 1.05, 2.0, 3.0]
    there = trials([9.0]).assign(latency_device="cpu:1 of pi4, Raspberry Pi 4, onnxruntime 1.27.0")
    assert pool_latencies(pd.concat([apart, there], ignore_index=True))["latency_p50_ms"].iloc[-1] == 9.0
    busy = pd.concat([trials([1.0]), trials([1.5], verdict="CPU shared: others ran in its place")], ignore_index=True)
    assert pool_latencies(busy)["latency_p50_ms"].tolist() == pytest.approx([1.0, 1.0])
    assert pool_latencies(busy)["latency_pooled"].tolist() == [1, 1]


def test_records_without_shapes_and_trials_without_files_stay_as_they_are() -> None:
    old = trials([1.0, 1.1]).drop(columns="latency_shape")
    pd.testing.assert_frame_equal(pool_latencies(old), old)
    stopped = trials([1.0, 1.1, 5.0])
    stopped.loc[2, "status"], stopped.loc[2, "latency_shape"] = "stopped", None
    assert pool_latencies(stopped)["latency_p50_ms"].round(2).tolist() == [1.05, 1.05, 5.0]


def test_time_standing_still_is_a_share_of_the_time_in_which_trials_ran() -> None:
    def row(started_s: int, ended_s: int) -> Row:
        return Row(run_id="", experiment_id="", started=1000 * started_s, ended=1000 * ended_s, artifacts="")

    # two at once, a pause of the command, one more, and one that still runs
    busy_s = busy_seconds([row(100, 110), row(105, 120), row(500, 520), row(530, 0)])
    assert busy_s == 40
    frame = pd.DataFrame({"latency_alone_s": [1.0, 0.5, 0.5, np.nan]})
    assert stood_still(frame, busy_s) == "measuring: trials stood still for 2.0 s, 5.0 % of the sweep"
    assert stood_still(frame, 0.0) is None
    assert stood_still(pd.DataFrame(), busy_s) is None
