import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from rich.console import Console

from analysis.findings.controls import WORTH, controls, interval_95, verdict
from analysis.findings.front import front_members, hypervolume_curve, mark_front, retrained
from analysis.pages.front_files import write_controls, write_front
from analysis.pages.terminal import print_controls
from analysis.reading.runs import read_runs
from tests.analysis.conftest import DIRECTIONS, log_sweep, teacher_rows, trial_rows

T_975 = {1: 12.7062, 2: 4.3027, 4: 2.7764}  # from a printed table


def row(arm: str, seed: int, test_accuracy: float, *, champion: int = 7, status: str = "finished") -> dict[str, Any]:
    return {
        "key": f"night/champions/{champion}-{arm}-seed{seed}",
        "status": status,
        "stage": "candidate",
        "control": arm,
        "val_accuracy": test_accuracy + 0.01,
        "test_accuracy": test_accuracy,
    }


def frame_of(accuracies: dict[str, list[float]]) -> pd.DataFrame:
    rows = [row(arm, seed, value) for arm, values in accuracies.items() for seed, value in enumerate(values, 1)]
    trial = {**row("x", 0, 0.99), "key": "night/00007", "control": None}
    teacher = {**row("x", 0, 0.95), "key": "night/teacher", "control": "teacher", "stage": "teacher"}
    return pd.DataFrame([trial, teacher, *rows])


def test_interval_of_three_by_hand() -> None:
    half = T_975[2] * 1 / math.sqrt(3)  # 1, 2, 3: mean 2, s = 1
    assert interval_95([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - half, 2 + half), abs=1e-4)


@pytest.mark.parametrize("n", [2, 5])
def test_interval_of_n_values(n: int) -> None:
    values = np.arange(n, dtype=float)
    half = T_975[n - 1] * math.sqrt(n * (n + 1) / 12) / math.sqrt(n)  # variance of 0..n-1 is n(n+1)/12
    assert interval_95(values) == pytest.approx(((n - 1) / 2, (n - 1) / 2 - half, (n - 1) / 2 + half), abs=1e-3)


def test_equal_differences_have_an_interval_of_no_width_and_one_value_has_none() -> None:
    assert interval_95([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    mean, low, high = interval_95([0.5])
    assert (mean, math.isnan(low), math.isnan(high)) == (0.5, True, True)


@pytest.mark.parametrize(
    ("interval", "n", "words"),
    [
        ((0.3, -0.4, 1.0), 3, "worth nothing that n = 3 can tell from zero (+0.30 points"),
        ((0.0, 0.0, 0.0), 3, "nothing that n = 3 can tell from zero"),
        ((1.1, 0.8, 1.4), 3, "was worth 1.10 points of test accuracy (95 % interval +0.80 to +1.40, n = 3)"),
        ((-0.6, -0.9, -0.3), 5, "cost 0.60 points of test accuracy (95 % interval -0.90 to -0.30, n = 5)"),
        ((0.6, math.nan, math.nan), 1, "+0.60 points of test accuracy; n = 1 gives no interval"),
        ((math.nan, math.nan, math.nan), 0, "n = 0"),
    ],
)
def test_verdict_says_what_the_interval_allows(interval: tuple[float, float, float], n: int, words: str) -> None:
    assert words in verdict("Distillation", interval, n)


def test_arms_are_summarised_and_paired_over_seeds() -> None:
    # differences to no_distillation are 1, 2 and 3 points, whatever the order of the rows
    frame = frame_of({"champion": [0.90, 0.92, 0.91], "no_distillation": [0.89, 0.90, 0.88], "not_pruned": [0.93] * 3})
    table = controls(frame.iloc[::-1]).set_index("arm")
    assert table.index.tolist() == ["champion", "no_distillation", "not_pruned", "teacher"]
    assert table.loc["champion", "test_accuracy_mean"] == pytest.approx(0.91)
    assert table.loc["champion", "test_accuracy_std"] == pytest.approx(0.01)
    assert table.loc["champion", "val_accuracy_mean"] == pytest.approx(0.92)
    assert table["n"].tolist() == [3, 3, 3, 1]
    half = T_975[2] / math.sqrt(3)
    worth = table.loc["no_distillation", ["worth_points", "worth_low", "worth_high"]].astype(float)
    assert worth.tolist() == pytest.approx([2, 2 - half, 2 + half], abs=1e-4)
    assert "nothing that n = 3 can tell from zero" in table.loc["no_distillation", "verdict"]
    assert table.loc["not_pruned", "worth_points"] == pytest.approx(-2)
    assert pd.isna(table.loc["champion", "verdict"]) and pd.isna(table.loc["teacher", "verdict"])


def test_a_seed_that_one_arm_lacks_makes_no_pair() -> None:
    frame = frame_of({"champion": [0.90, 0.92, 0.91], "from_scratch": [0.89, 0.90]})
    failed = {**row("from_scratch", 3, float("nan"), status="failed")}
    table = controls(pd.concat([frame, pd.DataFrame([failed])])).set_index("arm")
    assert table.loc["from_scratch", "worth_n"] == table.loc["from_scratch", "n"] == 2
    assert table.loc["from_scratch", "worth_points"] == pytest.approx(1.5)


def test_arms_without_their_champion_are_shown_but_not_judged() -> None:
    table = controls(frame_of({"not_pruned": [0.9, 0.91]})).set_index("arm")
    assert table.loc["not_pruned", "n"] == 2
    assert "n = 0" in table.loc["not_pruned", "verdict"]


def test_nothing_is_said_without_champions(tmp_path: Path) -> None:
    empty = controls(frame_of({}))
    console = Console(width=100)
    with console.capture() as capture:
        print_controls(console, empty)
    assert capture.get() == ""
    assert write_controls(empty, tmp_path) == []


def test_table_and_sentences_are_printed_within_80_columns(tmp_path: Path) -> None:
    table = controls(frame_of({"champion": [0.9, 0.92], **{arm: [0.9, 0.91] for arm in WORTH}}))
    console = Console(width=80)
    with console.capture() as capture:
        print_controls(console, table)
    shown = " ".join(capture.get().split())
    assert shown.count("nothing that n = 2 can tell from zero") == 3
    assert "…" not in shown
    (path,) = write_controls(table, tmp_path)
    assert pd.read_csv(path)["arm"].tolist() == table["arm"].tolist()


def test_retrained_runs_are_never_on_the_front_however_good() -> None:
    frame = frame_of({"champion": [0.999], "not_pruned": [0.999]}).assign(latency_p50_ms=1.0, size_bytes=1)
    marked = mark_front(frame, DIRECTIONS)
    assert marked[marked["pareto"]]["key"].tolist() == ["night/00007"]
    assert retrained(frame).sum() == 2
    assert not retrained(frame.drop(columns="control")).any()


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose sweep has trials, a teacher, and dream numbers in its champions' runs."""
    folder = tmp_path_factory.mktemp("runs")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.create_experiment("cifar10", artifact_location=(folder / "artifacts").as_uri())
    rows = [*trial_rows(6), teacher_rows()]
    for arm in ("champion", *WORTH):
        for seed in (1, 2):
            (again,) = trial_rows(1)
            again["tags"] = {"stage": "candidate", "status": "finished", "control": arm}
            again["tags"]["trial_number"] = f"champions/3-{arm}-seed{seed}"  # log_sweep makes the key of it
            again["metrics"] |= {"test_accuracy": 0.9 + seed / 100, "val_accuracy": 0.9999, "size_bytes": 1.0}
            rows.append(again)
    log_sweep(client, experiment, "night", rows)
    for run in client.search_runs([experiment], "tags.control != 'teacher'"):
        client.delete_tag(run.info.run_id, "trial_number")
    return folder


def test_front_hypervolume_and_files_are_those_of_the_search(night: Path, tmp_path: Path) -> None:
    runs = read_runs(f"sqlite:///{night / 'mlflow.db'}")
    assert len(runs.frame) == 6 + 1 + 8
    assert front_members(runs)["control"].isna().all()
    assert [number for number, _ in hypervolume_curve(runs)] == list(range(6))
    assert (tmp_path / "front" / "pareto.html") in write_front(runs, tmp_path / "front")


def test_command_prints_the_controls_and_writes_them(night: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "analysis", "--out", str(night), "--to", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert "Champions and controls" in done.stdout
    assert "Trial 3: Distillation was worth nothing that n = 2 can tell from zero" in done.stdout
    table = pd.read_csv(tmp_path / "controls.csv")
    assert table["arm"].tolist() == ["champion", *WORTH, "teacher"]
    assert table["worth_n"].dropna().tolist() == [2, 2, 2]
