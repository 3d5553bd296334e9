"""Commands without a preset: what they take where no GPU is asked for, and that they end in minutes."""

import argparse
import dataclasses
import io
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sweeps import kd_prune
from sweeps.display.console import Screen
from sweeps.planning.cost import Hits, Plan, estimate
from sweeps.planning.unasked import BUDGETS_S, LONG_S, fit_to_minutes, say_unasked
from sweeps.running.interface.sweep_toml import sweep_toml
from sweeps.search.config import SweepConfig
from sweeps.search.presets import cifar10, quick
from tests.sweeps.planning.test_cost import PROBE, sweep
from trainables.files import write_text
from trainables.records.encoding import to_json

IMAGES = 540


def asked(words: str) -> tuple[SweepConfig, argparse.Namespace, str]:
    """The sweep of a command without a preset, as it is before a probe, its flags, and its sweep.toml."""
    parser, flags = kd_prune._parse(words.split())
    typed = argparse.Namespace(**vars(flags))
    config = kd_prune._suited(kd_prune._config(flags), typed, IMAGES)
    fitted = kd_prune._fits_cores(typed)
    budget = typed.budget or (BUDGETS_S[0] if fitted and typed.trials is None else None)
    text = sweep_toml(vars(typed) | {"budget": budget}, config, parser, "kd_prune.py", fitted=fitted)
    return config, typed, text


@pytest.mark.parametrize(
    ("words", "teacher", "dataset", "kind"),
    [
        ("", "alexnet", "digits", "quick"),
        ("--gpus 0", "alexnet", "digits", "quick"),
        ("--dataset digits", "alexnet", "digits", "quick"),
        ("--dataset folder:../My_photos/", "resnet20", "folder:../My_photos/", "My-photos"),
        ("--dataset cifar10", "resnet20", "cifar10", "cifar10"),
        ("--dataset cifar10 --teacher-model resnet56", "resnet56", "cifar10", "cifar10"),
        ("--gpus 1", "resnet18", "cifar10", "cifar10"),
        ("--gpus 1 --dataset folder:photos", "resnet18", "folder:photos", "cifar10"),
        ("--preset cifar10", "resnet18", "cifar10", "cifar10"),
        ("--preset quick --dataset folder:photos", "alexnet", "folder:photos", "quick"),
    ],
)
def test_without_a_gpu_the_networks_are_small(words: str, teacher: str, dataset: str, kind: str) -> None:
    config, _, _ = asked(words)
    assert config.search.base.teacher.teacher_model == teacher
    assert config.search.base.data.dataset == dataset
    assert config.name.rpartition("-")[0] == kind


def test_presets_and_gpus_mean_what_they_meant() -> None:
    for words, preset in (("--preset cifar10", cifar10()), ("--gpus 1", cifar10()), ("", quick())):
        assert asked(words)[0].identity() == preset.identity()


@pytest.mark.parametrize(
    "words",
    [
        "--dataset folder:photos",
        "--dataset folder:photos --trials 7 --image-size 64",
        "--dataset folder:photos --budget 2h --alpha 0.5 --flip",
        "--dataset cifar10 --teacher-epochs 2 --student-model teacher --recovery-epochs 3",
        "--dataset digits",
    ],
)
def test_the_file_of_a_sweep_asks_for_the_same_sweep(words: str, tmp_path: Path) -> None:
    config, _, text = asked(words)
    path = tmp_path / "sweep.toml"
    path.write_text(text, encoding="utf-8")
    again, typed, text_again = asked(f"--config {path}")
    assert again == config
    assert typed.budget is None or typed.trials is None
    assert text_again == text


def planned(config: SweepConfig) -> tuple[Plan, Hits]:
    """Steps of 0.2 and 0.5 s, ten an epoch; the teacher's take two."""
    seconds = {"resnet8": 1.0, "teacher": 1.0}
    steps = {"resnet8": (0.5,), "teacher": (0.2,)}
    probe = dataclasses.replace(PROBE, student_step_s=steps, student_check_s=seconds, export_s=seconds)
    return estimate(probe, config, Hits(views_needed=4)), Hits(views_needed=4)


def with_a_teacher(config: SweepConfig) -> tuple[Plan, Hits]:
    plan, hits = planned(config)
    return dataclasses.replace(plan, teacher_s=plan.teacher_s * 0.0), hits


def test_a_budget_of_minutes_is_taken_and_a_quarter_of_it_for_the_teacher(tmp_path: Path) -> None:
    config = asked("--dataset folder:photos")[0].replace(out=tmp_path, cpus=2)
    fit, deadline = fit_to_minutes(config, planned, started=time.monotonic(), typed=())
    assert deadline is not None and deadline.budget_s in BUDGETS_S[:3]
    wanted, taken = (one.search.base.teacher.teacher_epochs for one in (config, fit))
    assert wanted > taken == round(0.1 * wanted), "its 25 seconds an epoch leave room for the smallest share alone"
    plan, _ = planned(fit)
    assert plan.total_s.expected < LONG_S
    fit.folder.mkdir(parents=True)
    write_text(fit.folder / "identity.json", to_json({"settings": {"base": fit.identity()["base"]}}))
    again, _ = fit_to_minutes(config, with_a_teacher, started=time.monotonic(), typed=())
    assert again.identity() == fit.identity(), "a sweep that has begun keeps its epochs"


def test_what_was_typed_is_left_as_it_is(tmp_path: Path) -> None:
    words = "--dataset folder:photos --trials 9 --teacher-epochs 50 --student-epochs 40 --recovery-epochs 40"
    config, flags, _ = asked(words)
    config = config.replace(out=tmp_path, cpus=2)
    typed = [name for name, value in vars(flags).items() if value is not None]
    assert fit_to_minutes(config, planned, started=0.0, typed=typed) == (config, None)
    fewer, _ = fit_to_minutes(config, planned, started=0.0, typed=["trials"])
    assert fewer.search.trials == 9
    assert fewer.search.base.teacher.teacher_epochs < 50 > fewer.search.base.student.student_epochs


def test_trials_that_have_time_keep_the_epochs_that_suit_the_images(tmp_path: Path) -> None:
    config = asked("--dataset folder:photos --trials 1 --teacher-epochs 1")[0].replace(out=tmp_path, cpus=2)
    base = config.search.base.replace(student_epochs=2, recovery_epochs=2)
    fit, _ = fit_to_minutes(config.replace(base=base), planned, started=0.0, typed=["trials", "teacher_epochs"])
    assert fit.search.base == base


def test_a_users_images_get_a_real_probe_and_a_file_that_asks_for_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of the command but the sweep itself."""
    rng = np.random.default_rng(0)
    for number in range(32):
        folder = tmp_path / "photos" / ("train", "test")[number % 2] / ("day", "night")[number // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    swept: list[tuple[SweepConfig, dict[str, Any]]] = []
    monkeypatch.setattr("sweeps.running.launch.run_sweep", lambda one, *_, **more: swept.append((one, more)) or 0)
    monkeypatch.chdir(tmp_path)
    assert kd_prune.main(["--dataset", "folder:photos", "--cpus", "1", "--val-fraction", "0.25"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"No --preset and no --gpus: teacher resnet20 \(\d+ epochs\), .*; a budget of \d+ ", said)
    ((config, more),) = swept
    assert more["deadline"].budget_s in BUDGETS_S
    (tmp_path / "sweep.toml").write_text(more["sweep_toml"], encoding="utf-8")
    _, flags = kd_prune._parse(["--config", "sweep.toml"])
    typed = argparse.Namespace(**vars(flags))
    assert kd_prune._suited(kd_prune._config(flags), typed, 12).name == config.name
    assert typed.budget == more["deadline"].budget_s


def test_a_long_sweep_is_said_even_where_it_is_quiet() -> None:
    for mode, config, lines in (("people", sweep(), 2), ("quiet", sweep(), 0), ("quiet", sweep(trials=9999), 2)):
        text = io.StringIO()
        say_unasked(Screen(mode, file=text), config, estimate(PROBE, config, Hits(views_needed=4)), None)
        said = text.getvalue().splitlines()
        assert len(said) == lines
        if said:
            assert said[0].startswith("No --preset and no --gpus: teacher alexnet (2 epochs), students ")
            assert f"{config.search.trials} trials, about " in said[0]
            assert all(flag in said[1] for flag in ("--budget 2h", "--preset cifar10 --gpus 1"))
