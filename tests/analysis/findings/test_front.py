import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis.findings.front import (
    choose,
    front_hypervolume,
    front_members,
    front_of,
    mark_front,
    most_accurate_first,
    of_device,
    split,
    with_teacher,
)
from analysis.findings.pareto import non_dominated, objectives
from analysis.pages.front_files import write_front
from analysis.pages.terminal import front_table
from analysis.reading.runs import Runs, read_runs
from tests.analysis.conftest import DIRECTIONS
from trainables.records.trial import TrialRecord


@pytest.fixture(scope="module")
def runs(store) -> Runs:
    return read_runs(store)


def test_only_finished_candidates_with_all_objectives_are_on_the_front(runs):
    marked = mark_front(runs.frame, runs.sweep["directions"])
    on_front = marked[marked["pareto"]]
    assert len(on_front) > 0
    # Trials 9, 10, 11 are stopped, failed and infeasible with dream numbers; trial 8 lacks its size.
    assert not set(on_front["trial_number"]) & {8, 9, 10, 11}
    assert set(on_front["stage"]) == {"candidate"}


def test_front_is_the_non_dominated_set_of_those_who_compete(runs):
    competing = runs.frame[runs.frame["trial_number"] < 8]
    points = objectives(competing, runs.sweep["directions"])
    assert set(front_members(runs).index) == set(points.index[non_dominated(points.to_numpy())])


def test_records_and_rows_have_the_same_front_under_any_keys():
    def record(number: int, accuracy: float, status: str = "finished") -> TrialRecord:
        metrics = {"val_accuracy": accuracy, "latency_p50_ms": 1.0, "size_bytes": 1e6}
        told = {"key": f"s/{number}", "stage": "candidate", "status": status, "reason": "", "params": {}, "tags": {}}
        more = {"curve": (), "files": (), "started": 0.0, "ended": 1.0}
        return TrialRecord(trial_number=number, metrics=metrics, **told, **more)

    records = [record(0, 0.8), record(1, 0.9), record(2, 0.99, "stopped")]
    assert front_of({Path(f"trials/{r.trial_number}"): r for r in records}, DIRECTIONS).index == [Path("trials/1")]
    rows = {r.trial_number: {**r.metrics, "stage": r.stage, "status": r.status} for r in records}
    front = front_of(rows, DIRECTIONS)
    assert front.index.tolist() == [1]
    assert front["val_accuracy"].tolist() == [0.9]
    assert most_accurate_first(front_of({}, DIRECTIONS)).empty


def test_choices_are_the_extremes_of_the_front(runs):
    front = front_members(runs)
    chosen = choose(front, runs.sweep["teacher"])
    assert set(chosen) == {"most_accurate", "balanced", "fastest", "smallest"}
    assert front.loc[chosen["most_accurate"], "val_accuracy"] == front["val_accuracy"].max()
    assert front.loc[chosen["fastest"], "latency_p50_ms"] == front["latency_p50_ms"].min()
    assert front.loc[chosen["smallest"], "size_bytes"] == front["size_bytes"].min()
    assert chosen["balanced"] in front.index


def test_a_ruined_network_is_not_chosen_unless_there_is_no_other(runs):
    front, teacher = front_members(runs), runs.sweep["teacher"]
    ruined = front["size_bytes"].idxmin()
    front.loc[ruined, "val_accuracy"] = 0.4 * teacher["val_accuracy"]
    chosen = choose(front, teacher)
    assert ruined not in chosen.values()
    assert chosen == choose(front.drop(ruined), teacher)
    assert set(choose(front.loc[[ruined]], teacher).values()) == {ruined}


def test_hypervolume_of_one_candidate_is_a_box(runs):
    frame = runs.frame[runs.frame["trial_number"] == 0].assign(
        val_accuracy=0.9, latency_p50_ms=1.0, reference_latency_p50_ms=4.0, size_bytes=44_700_000 / 2
    )
    one = dataclasses.replace(runs, frame=frame)
    assert front_hypervolume(one) == pytest.approx((90 - 10) * (1 + 2) * (1 + 1))


def test_table_has_the_teacher_on_top(runs):
    console = Console(width=140, record=True, quiet=False, file=None)
    with console.capture() as capture:
        console.print(front_table(with_teacher(runs, front_members(runs))))
    lines = [line for line in capture.get().splitlines() if line.strip()]
    assert lines[3].split()[:5] == ["teacher", "95.60", "95.10", "4.10", "1.00"]
    members = front_members(runs)
    assert [line.split()[0] for line in lines[4 : 4 + len(members)]] == [f"{n:.0f}" for n in members["trial_number"]]
    assert lines[4 + len(members)].startswith("validation, n = 5,000; test, n = ")


def test_files_are_written_and_read_back(runs, tmp_path):
    paths = write_front(runs, tmp_path / "front")
    pictures = [
        f"{name}.{kind}" for name in ("pareto", "metrics_grid", "latency", "hypervolume") for kind in ("png", "svg")
    ]
    assert [path.name for path in paths] == ["pareto.csv", "candidates.csv", "pareto.html", *pictures]
    assert all(path.is_file() for path in paths)
    front = pd.read_csv(paths[0], index_col="run_id")
    assert set(front.index) == set(front_members(runs).index)
    np.testing.assert_array_equal(front["latency_p50_ms"].to_numpy(), front_members(runs)["latency_p50_ms"].to_numpy())
    assert front["student_epochs"].tolist() == [20] * len(front)
    assert "20.0" not in paths[0].read_text()
    assert len(pd.read_csv(paths[1])) == len(runs.frame)


def test_the_teacher_of_sweep_json_stands_in_for_a_missing_run(runs, tmp_path):
    alone = dataclasses.replace(runs, frame=runs.frame[runs.frame["stage"] == "candidate"])
    row = with_teacher(alone, front_members(alone)).iloc[0]
    assert row["stage"] == "teacher"
    assert row["latency_p50_ms"] == 4.1
    assert len(write_front(alone, tmp_path)) == 11


def test_without_a_finished_candidate_only_tables_are_written(runs, tmp_path):
    failed = dataclasses.replace(runs, frame=runs.frame.assign(status="failed"))
    assert front_members(failed).empty
    assert front_hypervolume(failed) == 0
    assert [path.name for path in write_front(failed, tmp_path)] == ["pareto.csv", "candidates.csv"]
    with pytest.raises(ValueError, match="at least one candidate"):
        choose(front_members(failed), failed.sweep["teacher"])


def test_table_fits_80_columns(runs):
    front = front_members(runs)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(front_table(with_teacher(runs, front), variants=choose(front, runs.sweep["teacher"])))
    assert "…" not in capture.get()
    assert "most accurate: trial" in capture.get()


def test_table_names_what_is_unusual_and_leaves_out_what_is_inert(runs):
    front = front_members(runs).iloc[:3].copy()
    front["temperature"], front["pruning_method"], front["pruning_ratio"] = 7.0, "structured", 0.3
    front["alpha"], front["kd_loss"], front["precision"] = (
        [0.0, 0.9, 0.9],
        ["none", "dkd", "kd"],
        ["fp32", "fp32", "int8_ptq"],
    )
    console = Console(width=100)
    with console.capture() as capture:
        console.print(front_table(with_teacher(runs, front)))
    lines = [line.split() for line in capture.get().splitlines()]
    ends = [" ".join(line[7:]) for line in lines if line and line[0].isdigit()]
    assert ends == ["- 0 structured 0.3", "7 0.9 dkd, structured 0.3", "7 0.9 structured 0.3, int8_ptq"]
    (teacher,) = (line for line in lines if line[:1] == ["teacher"])
    assert teacher[4] == teacher[6] == "1.00"


def on_two_devices(runs: Runs) -> Runs:
    """Every trial a second time, on a device ten times as fast, the teacher on the first alone."""
    first = runs.frame.assign(latency_device="cpu:1")
    second = first[first["stage"] == "candidate"].rename(index="fast-{}".format)
    second = second.assign(latency_device="cuda", reference_latency_p50_ms=0.41)
    second["latency_p50_ms"] /= 10
    return dataclasses.replace(runs, frame=pd.concat([first, second]))


def test_devices_do_not_compete_and_each_has_its_front(runs):
    both = on_two_devices(runs)
    marked = mark_front(both.frame, both.sweep["directions"])
    slow = marked[marked["latency_device"] == "cpu:1"]
    assert set(slow.index[slow["pareto"]]) == set(front_members(runs).index)
    groups = split(both)
    assert list(groups) == ["cifar10, cpu:1", "cifar10, cuda"]
    assert [front_hypervolume(part) for part in groups.values()] == pytest.approx([front_hypervolume(runs)] * 2)
    assert groups["cifar10, cuda"].sweep["teacher"]["latency_p50_ms"] == 0.41
    assert of_device(both, "cuda").frame.index.str.startswith("fast-").all()
    with pytest.raises(ValueError, match=r"device='tpu' has no candidate .* cpu:1, cuda"):
        of_device(both, "tpu")


def test_one_device_is_not_split(runs):
    assert list(split(runs)) == [""]


def test_table_marks_members_that_another_one_rules_out(runs):
    frame = with_teacher(runs, front_members(runs).assign(may_be_optimal=False))
    console = Console(width=80)
    with console.capture() as capture:
        console.print(front_table(frame))
    assert f"{front_members(runs)['trial_number'].iloc[0]:.0f}~ " in capture.get()
    assert "here by chance" in capture.get()
