import dataclasses
import re
from pathlib import Path

import pytest
from PIL import Image

from analysis.front import write_front
from analysis.runs import Runs, read_runs

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
    assert len(page) < 5_500_000
    assert not re.search(r"<(script|link|img|iframe)\b[^>]*\b(src|href)\s*=\s*[\"']?(https?:)?//", page, re.IGNORECASE)
    assert "Plotly.newPlot" in page


def test_html_says_data_set_split_count_and_device(folder):
    page = (folder / "pareto.html").read_text(encoding="utf-8")
    for words in ("cifar10", "validation, n = 5,000", "cpu:1", "latency p50, ms", "size, MB", "test accuracy"):
        assert words in page


def test_names_from_outside_are_escaped(runs, tmp_path):
    frame = runs.frame.assign(student_model=EVIL, dataset=EVIL, pruning_method=EVIL)
    write_front(dataclasses.replace(runs, frame=frame), tmp_path)
    page = (tmp_path / "pareto.html").read_text(encoding="utf-8")
    assert EVIL not in page
    assert "<img" not in page.split("Plotly.newPlot")[-1]
    assert "\\u003cimg" not in page


def test_pictures_have_their_size(folder):
    assert Image.open(folder / "pareto.png").size == (1500, 1080)
    assert Image.open(folder / "metrics_grid.png").width == 2100


def test_one_candidate_and_no_image_counts_can_be_drawn(runs, tmp_path):
    frame = runs.frame[runs.frame["trial_number"] == 0].drop(columns=["num_val", "num_test", "latency_p90_ms"])
    assert len(write_front(dataclasses.replace(runs, frame=frame), tmp_path)) == 5
