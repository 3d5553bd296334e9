"""Grids of an ablation, its cells and pictures; tests/sweeps/test_studies.py trains one."""

from pathlib import Path
from typing import IO

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from analysis.pages.ablation import bars_png, cells, heat_map_png
from sweeps import ablation
from sweeps.ablation import grid
from sweeps.search.config import SweepConfig


def trial(**changes: object) -> dict[str, object]:
    row = {"status": "finished", "stage": "candidate", "val_accuracy": 0.8, "latency_p50_ms": 2.0, "size_bytes": 10}
    return row | {"test_accuracy": 0.5, "kd_loss": "kd", "num_test": 360, "dataset": "digits"} | changes


def config(*words: str) -> SweepConfig:
    _, flags = ablation.parse(list(words))
    return ablation.config_from(flags)


def test_means_and_deviations_by_hand() -> None:
    rows = [trial(test_accuracy=value) for value in (0.5, 0.6, 0.7)]
    rows += [trial(kd_loss="none", test_accuracy=value) for value in (0.4, 0.8)]
    rows += [trial(status="failed", test_accuracy=0.0), trial(stage="teacher", test_accuracy=1.0)]
    table = cells(pd.DataFrame(rows), ["kd_loss"]).set_index("kd_loss")
    assert table["n"].to_dict() == {"kd": 3, "none": 2}
    assert table["test_accuracy_mean"].to_dict() == pytest.approx({"kd": 0.6, "none": 0.6})
    assert table["test_accuracy_sd"].to_dict() == pytest.approx({"kd": 0.1, "none": 0.08**0.5})
    assert table["size_bytes_sd"].to_dict() == {"kd": 0, "none": 0}


def test_a_setting_that_is_off_is_a_cell_of_its_own_and_one_seed_has_no_deviation() -> None:
    rows = [trial(mixup_alpha=None), trial(mixup_alpha=0.2), trial(mixup_alpha=0.2)]
    table = cells(pd.DataFrame(rows), ["mixup_alpha"])
    by_value = {row["mixup_alpha"]: row for row in table.to_dict("records")}
    assert {value: row["n"] for value, row in by_value.items()} == {None: 1, 0.2: 2}
    assert pd.isna(by_value[None]["test_accuracy_sd"])


def test_pictures_fit_a_page_and_hold_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    save = Figure.savefig

    def note(figure: Figure, file: IO[bytes], *, format: str) -> None:
        if format == "png":  # the same figure becomes an SVG
            seen.extend(text.get_text() for axes in figure.axes for text in axes.texts)
        save(figure, file, format=format)

    monkeypatch.setattr(Figure, "savefig", note)
    frame = pd.DataFrame(
        trial(temperature=t, alpha=a, pruning_ratio=r, test_accuracy=t / 10 + a / 100 + r / 1000 + noise)
        for t in (2.0, 4.0, 6.0)
        for a in (0.5, 0.9)
        for r in (0.2, 0.5)
        for noise in (0.0, 0.02)
    )
    table = cells(frame, ["temperature", "alpha", "pruning_ratio"])
    heat_map_png(table, tmp_path / "heat.png", frame=frame, sweep={})
    assert len(seen) == 12
    assert "21.5\n± 1.4" in seen  # T=2, alpha=0.5, ratio=0.2: 20.52 and 22.52
    bars_png(cells(frame, ["temperature"]), ["temperature"], tmp_path / "bars.png", frame=frame, sweep={})
    assert len(seen) == 12 + 3 * 3
    for name in ("heat.png", "bars.png"):
        width, height = Image.open(tmp_path / name).size
        assert 900 < width < 3000
        assert height < 2000


@pytest.mark.parametrize(
    ("preset", "cells_"),
    [("kd-grid", 27), ("augmentation", 4), ("distillation", 2), ("precision", 3), ("pruned", 3), ("amp", 2)],
)
def test_a_grid_is_as_large_as_its_cells_times_seeds(preset: str, cells_: int) -> None:
    made = config("--preset", preset, "--base", "quick", "--seeds", "2")
    points = grid(made)
    assert made.search.trials == len(points) == 2 * cells_
    assert len({str(sorted(point.items(), key=str)) for point in points}) == len(points)
    assert [point["seed"] for point in points[:cells_]] == [0] * cells_
    assert (made.search.sampler, made.search.stopper, made.search.reuse_probability) == ("grid", "off", 0.0)


def test_flags_change_the_axes_and_what_is_fixed() -> None:
    made = config(
        "--preset", "augmentation", "--base", "quick", "--mixup-alpha", "0.4", "--alpha", "0.7", "--seed", "5"
    )
    assert made.search.space["mixup_alpha"].choices == (None, 0.4)
    assert made.search.space["seed"].choices == (5, 6, 7)
    assert made.search.base.student.alpha == 0.7
    grid_ = config("--preset", "kd-grid", "--base", "quick", "--temperature", "1,3", "--seeds", "1")
    assert grid_.search.trials == 2 * 3 * 3


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", ["--preset"]),
        ("--preset kd", ["--preset", "'kd'", "kd-grid"]),
        ("--preset distillation --seeds 0", ["--seeds 0"]),
        ("--preset distillation --alpha 0.5,0.9", ["--alpha 0.5,0.9", "varies kd_loss alone", "one value"]),
        ("--preset distillation --temperature 1:4", ["--temperature 1:4", "one value"]),
        ("--preset kd-grid --trials 5", ["unknown flag --trials"]),
        ("--preset kd-grid --stopper off", ["unknown flag --stopper"]),
        ("--preset kd-grid --alpha 2", ["--alpha 2.0", "0 <= alpha <= 1"]),
    ],
)
def test_bad_input_is_answered_on_one_line(
    words: str, named: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        ablation.main(["--base", "quick", "--out", str(tmp_path / "runs"), *words.split()])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.count("\n") == 1
    assert all(part in error for part in named), error
    assert not (tmp_path / "runs").exists()
