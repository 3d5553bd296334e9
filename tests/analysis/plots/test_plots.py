import dataclasses
import re
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from analysis.pages.front_files import write_front
from analysis.plots.front import head, headline, metrics_grid_png
from analysis.plots.page import unpacked
from analysis.reading.runs import Runs, read_runs
from analysis.reading.wording import kinds_of

EVIL = "<img src=x onerror=alert(1)></script>$&"


@pytest.fixture(scope="module")
def runs(store) -> Runs:
    return read_runs(store)


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("front")
    write_front(runs, target)
    return target


def test_html_loads_nothing_and_is_small_enough(folder):
    page = (folder / "pareto.html").read_text(encoding="utf-8")
    assert len(page) < 2_500_000
    assert not re.search(r"<(script|link|img|iframe)\b[^>]*\b(src|href)\s*=\s*[\"']?(https?:)?//", page, re.IGNORECASE)


def test_html_holds_every_candidate_with_its_recipe_and_where_its_run_is(runs, folder):
    page = (folder / "pareto.html").read_text(encoding="utf-8")
    for words in ("cifar10", "cpu:1", "resnet18 to mobilenet_v3_small", "8 finished trials"):
        assert words in page
    content = unpacked(page)
    assert content["y_title"] == "accuracy, % (validation, n = 5,000)"
    assert sorted(content["labels"]) == [f"trial {number}" for number in range(8)]  # the others have no result
    at = content["labels"].index("trial 3")
    row = runs.frame[runs.frame["trial_number"] == 3].iloc[0]
    assert content["runs"][at] == row.name
    assert content["metrics"]["latency_p50_ms"]["values"][at] == pytest.approx(row["latency_p50_ms"], rel=1e-5)
    assert content["metrics"]["size_bytes"]["values"][at] == pytest.approx(row["size_bytes"] / 1e6, rel=1e-5)
    varied = {part["name"]: part["values"][at] for part in content["varied"]}
    assert varied["temperature"] == row["temperature"] and varied["pruning_method"] == row["pruning_method"]
    assert content["fixed"]["teacher_model"] == "resnet18"
    assert content["teacher"]["latency_p50_ms"] == 4.1


def test_names_from_outside_are_text_and_nothing_else(runs, tmp_path):
    frame = runs.frame.assign(student_model=EVIL, dataset=EVIL, pruning_method=EVIL)
    write_front(dataclasses.replace(runs, frame=frame), tmp_path)
    page = (tmp_path / "pareto.html").read_text(encoding="utf-8")
    assert "&lt;img src=x" in page
    assert "<img" not in page
    assert unpacked(page)["kinds"] == [EVIL]  # the page makes text nodes of it


def test_pictures_have_their_size(folder):
    assert Image.open(folder / "pareto.png").size == (1650, 1110)
    assert Image.open(folder / "metrics_grid.png").width == 2100


def test_one_candidate_and_no_image_counts_can_be_drawn(runs, tmp_path):
    frame = runs.frame[runs.frame["trial_number"] == 0].drop(columns=["num_val", "num_test", "latency_p90_ms"])
    assert len(write_front(dataclasses.replace(runs, frame=frame), tmp_path)) == 11


def test_bars_of_several_networks_say_which_one_they_are(runs, tmp_path):
    frame = runs.frame.assign(student_model="resnet20")
    fastest = frame.index[frame["stage"] != "teacher"][0]
    for students, told in ((["resnet20"], False), (["resnet20", "resnet8"], True)):
        frame.loc[frame.index != fastest, "student_model"] = students[-1]
        metrics_grid_png(frame, tmp_path / "grid.png", sweep=runs.sweep, variants={"fastest": fastest})
        assert (re.search("<!-- resnet20", (tmp_path / "grid.svg").read_text()) is not None) == told


@pytest.mark.parametrize("name", ["cifar10", "folder:photographs_of_every_street_in_the_town_of_my_grandparents"])
def test_titles_stay_within_their_picture(runs, name):
    sweep, frame = {**runs.sweep, "config": {"dataset": name}}, runs.frame.assign(dataset=name)
    for over_axes in (True, False):
        figure = Figure(figsize=(10, 6))
        axes = figure.subplots()
        head(axes if over_axes else figure, f"Hypervolume of the front\n{headline(frame, sweep)}", size=18)
        figure.draw_without_rendering()
        text = axes._left_title if over_axes else figure._suptitle
        assert name in text.get_text()
        assert text.get_window_extent().x1 <= figure.bbox.x1
        assert text.get_fontsize() > 8


def test_pictures_come_as_svg_too_and_a_dollar_is_a_dollar(runs, tmp_path):
    frame = runs.frame.assign(dataset="price$ in $ per piece")
    write_front(dataclasses.replace(runs, frame=frame), tmp_path)
    for name in ("pareto", "metrics_grid", "latency", "hypervolume"):
        assert (tmp_path / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
        assert Image.open(tmp_path / f"{name}.png").width >= 1500


@pytest.mark.parametrize(
    ("columns", "kinds"),
    [
        ({}, ["candidates", "candidates"]),
        ({"pruning_method": ["structured", None]}, ["structured", "not pruned"]),
        ({"pruning_method": ["structured"] * 2, "student_model": ["a", "a"]}, ["structured", "structured"]),
        ({"student_model": ["teacher", "b"], "pruning_method": ["structured"] * 2}, ["copy of the teacher", "b"]),
        (
            {"student_model": ["teacher", "small"], "pruning_method": ["l1"] * 2, "precision": ["fp32", "int8_ptq"]},
            ["copy of the teacher, fp32", "small, int8_ptq"],
        ),
    ],
)
def test_candidates_that_differ_in_network_or_file_have_markers_of_their_own(columns: dict, kinds: list[str]) -> None:
    assert kinds_of(pd.DataFrame(columns, index=pd.RangeIndex(2))).tolist() == kinds
