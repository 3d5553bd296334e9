import dataclasses
import os
import re
from pathlib import Path

import pytest

from analysis.findings.front import choose, competing, front_members
from analysis.pages.model_card import model_card
from analysis.pages.report import markdown, summary_of, write_report
from analysis.plots.page import unpacked
from analysis.reading.mlflow_client import open_store
from analysis.reading.runs import Runs, read_runs

EVIL = "<img src=x onerror=alert(1)> `code` [x](javascript:1) | **b**"


@pytest.fixture(scope="module")
def runs(store: str) -> Runs:
    return read_runs(store)


def test_the_report_says_which_network_won_at_which_share_of_the_teachers_latency(runs: Runs) -> None:
    candidates = runs.frame[(runs.frame["stage"] == "candidate") & (runs.frame["status"] == "finished")].index
    itself = {"student_model": "teacher", "pruning_ratio": 0.0, "precision": "int8_ptq", "val_accuracy": 0.99}
    teacher_ms = float(runs.sweep["teacher"]["latency_p50_ms"])
    frame = runs.frame.assign(student_model="small", precision="fp32")
    for name, value in (itself | {"latency_p50_ms": 0.3 * teacher_ms}).items():
        frame.loc[candidates[0], name] = value
    for row in candidates[1:]:
        frame.loc[row, ["val_accuracy", "latency_p50_ms"]] = 0.9, 0.2 * teacher_ms
    text = markdown(dataclasses.replace(runs, frame=frame)).partition("## Which network won where")[2]
    rows = [line.split(" | ") for line in text.partition("\n## ")[0].splitlines() if " x | " in line]
    assert [(row[0], row[2], row[4]) for row in rows] == [
        ("| 1 x", "teacher", "no"),
        ("| 0.5 x", "teacher", "no"),
        ("| 0.25 x", "small", "yes"),
    ]


def test_the_verdict_comes_first_and_every_part_is_there(runs: Runs) -> None:
    text = markdown(runs)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert headings[:9] == [
        "cifar10: report of sweep night",
        "The front",
        "Which network won where",
        "What distillation and pruning were worth",
        "Which setting moved what",
        "What reuse saved",
        "How latency was measured",
        "How to reproduce",
        headings[8],
    ]
    assert headings[8].startswith("Model card: ")
    verdict = text.partition("## The front")[0]
    row = front_members(runs).loc[choose(front_members(runs), runs.sweep["teacher"])["balanced"]]
    assert f"{100 * row['test_accuracy']:.2f} %" in verdict
    assert f"{row['size_bytes'] / 1e6:#.3g} MB" in verdict
    assert "n = 10,000" in verdict and "cpu:1" in verdict


def test_reuse_is_counted_in_runs_and_seconds(runs: Runs) -> None:
    frame = runs.frame.assign(reused_time_s=0.0, train_time_s=10.0)
    frame.loc[frame["trial_number"] < 2, "reused_time_s"] = 18.0  # the teacher's 10 among them
    text = markdown(dataclasses.replace(runs, frame=frame))
    assert "2 of 9 trials took their student, or a part of its training, from the store: 16 s" in text
    assert "shared one teacher (10 s) and hold 90 s of student training" in text


def test_files_are_written_and_the_page_loads_nothing(runs: Runs, tmp_path) -> None:
    paths = {path.name for path in write_report(runs, tmp_path)}
    assert {"report.md", "report.html", "pareto.png", "metrics_grid.svg", "pareto.csv"} <= paths
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"\bsrc=\"([^\"]{0,40})", page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in page and "<link" not in page


def test_texts_from_outside_stay_text(runs: Runs, tmp_path) -> None:
    frame = runs.frame.assign(student_model=EVIL, dataset=EVIL, pruning_method=EVIL, latency_device=EVIL)
    sweep = {**runs.sweep, "commit": EVIL, "versions": {EVIL: EVIL}, "config": {"space": {EVIL: EVIL}}}
    write_report(dataclasses.replace(runs, frame=frame, sweeps={runs.name: sweep}), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;img src=x" in page
    assert "<img src=x" not in page and 'href="javascript' not in page
    assert "<strong>b</strong>" not in page and "<code>code</code>" not in page


@pytest.mark.parametrize("values", [1, 2])  # a setting of several values stands in the front's table, too
def test_pictures_from_elsewhere_are_not_loaded(values: int, runs: Runs, tmp_path: Path) -> None:
    pictures = [f"![x](http://127.0.0.1:1/{number % values}.png)" for number in range(len(runs.frame))]
    write_report(dataclasses.replace(runs, frame=runs.frame.assign(student_model=pictures)), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "![x](http://127.0.0.1:1/0.png)" in page
    assert 'src="http' not in page and "default-src 'none'" in page


def test_no_page_holds_the_password_of_the_tracking_server(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.reading.runs.open_store", lambda uri: open_store(store))
    runs = read_runs("http://me:s3cret@head:5000/")
    texts = [path.read_text() for path in write_report(runs, tmp_path) if path.suffix in (".md", ".html", ".csv")]
    data = unpacked((tmp_path / "pareto.html").read_text(encoding="utf-8"))
    texts += [str(data), model_card(runs, str(front_members(runs).index[0]), "0"), summary_of(runs, model="night")]
    assert data["url"] == "http://head:5000"
    assert not any("s3cret" in text for text in texts)


def test_files_are_replaced_whole(runs: Runs, tmp_path: Path) -> None:
    """Who reads one while it is written, or after the disk was full, has the whole old file."""
    for path in write_report(runs, tmp_path):
        path.write_text("old")
        os.link(path, path.with_name(f"{path.name}.open"))
    assert {path.with_name(f"{path.name}.open").read_text() for path in write_report(runs, tmp_path)} == {"old"}


def test_the_card_says_how_to_make_the_file_again(runs: Runs) -> None:
    row = runs.frame[runs.frame["trial_number"] == 0].iloc[0]
    card = model_card(runs, str(row.name), "0")
    assert card.startswith("# night@0\n")
    assert "python -m trainables.stages.candidate " in card
    assert f"--pruning-ratio {row['pruning_ratio']:g}" in card and "--flip" in card and "--student-epochs 20" in card
    assert "--image-size" not in card  # None is what it is without the flag
    assert "in float" not in card


def test_the_card_names_the_layers_that_an_int8_file_keeps_in_float(runs: Runs) -> None:
    mixed = dataclasses.replace(runs, frame=runs.frame.assign(kept_in_float="conv1,layer1.0.conv2"))
    card = model_card(mixed, str(mixed.frame.index[0]), "0")
    assert "| layers kept in float | conv1, layer1.0.conv2 |" in card


def test_the_summary_for_mlflows_page_names_the_model_to_load(runs: Runs) -> None:
    assert "models:/night@balanced" in summary_of(runs, model=runs.name)
    assert summary_of(runs, model=runs.name).startswith("**Balanced**: trial ")


def test_the_sweeps_command_is_told_and_cannot_leave_its_block(runs: Runs) -> None:
    sweep = runs.sweep | {"command": "python sweeps/kd_prune.py --preset quick ```"}
    text = markdown(dataclasses.replace(runs, sweeps={runs.name: sweep}))
    assert "```\npython sweeps/kd_prune.py --preset quick '''\n```" in text
    assert "sweeps/kd_prune.py" not in markdown(runs)


def test_the_report_says_how_latency_was_measured_and_what_that_cost(runs: Runs) -> None:
    frame = runs.frame.assign(
        latency_verdict="clean",
        reference_latency_beside_p50_ms=6.5,
        latency_pooled=4.0,
        latency_vs_teacher=0.25,
        latency_vs_teacher_half_width=0.04,
        latency_alone_s=2.0,
    )
    first = competing(runs).index[0]
    frame.loc[first, "latency_verdict"] = "CPU shared: others ran in its place for 6 % of the time"
    frame.loc[first, "reference_latency_beside_p50_ms"] = 4.7
    busy_s = 2.0 * len(frame) / 0.05
    text = markdown(dataclasses.replace(runs, frame=frame, busy_s=busy_s))
    assert " ms (0.250 ± 0.010 of the teacher's)" in text.partition("## The front")[0]
    assert "one p50, pooled from up to 4 measurements" in text
    assert "The teacher's p50 beside them ranged from 4.70 to 6.50 ms; no latency depends on that" in text
    assert f"Measuring: trials stood still for {2 * len(frame):.1f} s, 5.0 % of the sweep." in text
    assert "Measurements: " in text and " clean, 1 CPU shared." in text


def test_energy_is_a_column_where_a_trial_has_it(runs: Runs) -> None:
    front = [str(member) for member in front_members(runs).index]
    frame = runs.frame.assign(energy_per_image_mj=float("nan"))
    frame.loc[front[0], "energy_per_image_mj"] = 12.34
    text = markdown(dataclasses.replace(runs, frame=frame)).partition("## The front")[2].partition("\n## ")[0]
    assert "| p90 ms | mJ | MB |" in text and "| 12.3 |" in text
    assert "mJ" not in markdown(runs)
