import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.findings.comparing import compare, verdict
from analysis.findings.front import front_hypervolume
from analysis.plots.compared import attainment_png
from analysis.reading.runs import Runs, read_runs


@pytest.fixture(scope="module")
def night(store: str) -> Runs:
    return read_runs(store)


def better(runs: Runs, by: float) -> Runs:
    """The same sweep with every candidate this much more accurate, under another name."""
    frame = runs.frame.copy()
    accuracy = frame.loc[frame["stage"] == "candidate", "val_accuracy"]
    frame.loc[accuracy.index, "val_accuracy"] = (accuracy + by).clip(upper=1.0)
    return dataclasses.replace(runs, name="better", frame=frame, sweeps={"better": runs.sweep})


def test_hypervolumes_are_those_of_the_fronts_and_lie_in_their_intervals(night: Runs) -> None:
    one, two = compare(night, better(night, 0.05), resamples=50).sides
    assert one.hypervolume == pytest.approx(front_hypervolume(night))
    assert one.low <= one.high <= one.hypervolume < two.hypervolume
    assert one.candidates == two.candidates == 8
    assert len(one.resampled) == 50


def test_a_sweep_beside_itself_leads_in_half_of_the_resamples(night: Runs) -> None:
    comparison = compare(night, dataclasses.replace(night), resamples=200)
    assert comparison.a_leads == pytest.approx(0.5, abs=0.1)
    assert "same hypervolume" in verdict(comparison)


def test_a_clear_lead_is_called_one_and_a_thin_one_is_not(night: Runs) -> None:
    clear = compare(night, better(night, 0.5), resamples=100)
    assert clear.a_leads < 0.025
    assert verdict(clear).startswith("better has the better front")
    thin = verdict(compare(night, better(night, 0.0001), resamples=100))
    assert thin.startswith("better leads with ") and "cannot tell them apart" in thin


def test_the_same_seed_gives_the_same_interval(night: Runs) -> None:
    first, again = (compare(night, better(night, 0.01), resamples=30) for _ in range(2))
    np.testing.assert_array_equal(first.sides[0].resampled, again.sides[0].resampled)


@pytest.mark.parametrize(
    ("column", "value", "message"), [("dataset", "cifar100", "was run on cifar10, better on cifar100")]
)
def test_what_does_not_compare_is_refused(night: Runs, column: str, value: str, message: str) -> None:
    other = better(night, 0.0)
    with pytest.raises(ValueError, match=message):
        compare(night, dataclasses.replace(other, frame=other.frame.assign(**{column: value})))


def test_another_reference_point_is_refused_and_another_teacher_noted(night: Runs) -> None:
    other = better(night, 0.0)
    moved = {**other.sweep, "reference_point": {**other.sweep["reference_point"], "error_points": 50.0}}
    with pytest.raises(ValueError, match="night and better differ in reference_point"):
        compare(night, dataclasses.replace(other, sweeps={"better": moved}))
    frame = other.frame.assign(teacher_model="alexnet")
    (note,) = compare(night, dataclasses.replace(other, frame=frame), resamples=5).notes
    assert note.endswith("(teacher_model resnet18, alexnet)")


def test_picture_of_both(night: Runs, tmp_path: Path) -> None:
    paths = attainment_png(night, better(night, 0.01), tmp_path / "both.png")
    assert [path.name for path in paths] == ["both.png", "both.svg"]
    assert Image.open(paths[0]).size == (1500, 1050)
