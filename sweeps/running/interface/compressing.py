"""`compress`: a sweep over a trained network that a program has in memory."""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from torch import nn

from sweeps.display.console import Screen
from sweeps.display.durations import duration
from sweeps.planning.budget import EPOCH_SHARES, EPOCHS, Deadline, fit_to_budget, spent_seconds
from sweeps.planning.packing import resolve_shares
from sweeps.planning.unasked import ARGUMENTS, fit_to_minutes, plan_maker, say_unasked
from sweeps.running.interface.command import check, check_limits, check_networks
from sweeps.running.interface.config_file import ConfigFile
from sweeps.running.interface.flags import add_sweep_flags, searching
from sweeps.running.interface.given_images import GivenImages, write_images
from sweeps.running.interface.given_model import importable, write_model
from sweeps.running.interface.result import Result
from sweeps.running.launch import run_sweep
from sweeps.search.config import SweepConfig
from sweeps.search.presets import cifar10, default_name, epochs_for, on_cores
from trainables.config.candidate import TEACHER_ITSELF
from trainables.config.flags import OneLineParser
from trainables.files import digest_of
from trainables.records.stages import DatasetRecord
from trainables.stages.data import prepared
from trainables.stages.data.sources.folders import PREFIX

GIVEN = "given"  # below the folder of data: images and networks of programs
DECIDED = (
    "dataset",
    "normalize",
    "teacher_model",
    "teacher_weights",
    "teacher_epochs",
    "address",
    "storage",
    "tracking_uri",
)


def compress(
    model: nn.Module,
    *,
    train: Any,
    test: Any = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    class_names: Sequence[str] | None = None,
    budget: str | float | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Cut a trained network, recover it by distillation from itself, export and measure it, over a Ray of its own.

    Without `gpus`, `trials` and `budget` it takes what ends in eight minutes on these cores, or in little more where
    two networks take longer, and says so. The same call goes on where it was interrupted.

    Args:
        model: takes (B, C, H, W) with C = 1 or 3 and returns logits (B, classes); it is copied, and left as it is.
        train: map-style data set of (image, label), arrays (images, labels), or a folder with train/CLASS/ and
            test/CLASS/; without random transforms and without Normalize: `write_images` says which forms fit. A tenth
            is cut off for validation.
        test: likewise; read once, for `test_accuracy`. Left out where `train` is a folder.
        mean: of the Normalize that the network was trained with, for pixels in [0, 1]; one number or three.
        std: likewise.
        class_names: in the order of the labels.
        budget: time for as many trials as fit, such as "90m", or seconds; leave `trials` out.
        quiet: print the result alone.
        settings: of the sweep, by the names of the flags of sweeps/kd_prune.py: `trials=30`, `max_latency_ms=5`,
            `pruning_ratio="0.2:0.8"`, `image_size=64`, `out="runs"`.

    Raises:
        ValueError: naming the argument, what is wrong and the fix.
    """
    if ray.is_initialized():
        raise ValueError("Ray is running in this process already, without the network; call ray.shutdown() before.")
    started = time.monotonic()
    screen = Screen("quiet" if quiet else "people")
    budget_s = _seconds(budget, settings)
    asked = _config(settings)
    screen.note("Reading the images")
    given = _images(train, test, asked.places.data_dir, class_names)
    asked = asked.replace(base=asked.search.base.replace(dataset=f"{PREFIX}{given.folder.resolve()}"))
    dataset = prepared.prepare(asked.search.base.data, asked.places.data_dir)
    if not asked.devices.gpus:
        suited = epochs_for(dataset.num_train, asked.search.base.training.batch_size)
        asked = asked.replace(
            base=asked.search.base.replace(**{name: suited[name] for name in EPOCHS} | _typed_epochs(settings))
        )
    folder = asked.places.data_dir / GIVEN
    name, weights = write_model(model, dataset, folder, mean=mean, std=std, channels=given.channels)
    teacher = {"teacher_model": name, "teacher_weights": digest_of(weights, "teacher_weights")}
    config = asked.replace(base=asked.search.base.replace(**teacher))
    if "name" not in settings:
        config = config.replace(name=default_name("compress", config.identity()))
    with importable(folder):
        check(config)
        screen.note("Trying the network: a step, a cut, an export")
        check_networks(config, dataset, str(weights))
        check_limits(config, dataset)
        config, deadline = _fit(resolve_shares(config, screen), dataset, screen, settings, budget_s, started)
        screen.note("Starting Ray and MLflow")
        try:
            failed = run_sweep(config, dataset, screen, deadline=deadline)
        finally:
            screen.go_on()
    return Result(name=config.name, out=config.places.out, complete=not failed)


def _config(settings: dict[str, Any]) -> SweepConfig:
    """The sweep that the settings ask for, over the network itself as the student."""
    for name in DECIDED:
        if name in settings:
            instead = "give mean= and std=" if name == "normalize" else "leave it out, or take a command"
            raise ValueError(f"{name}={settings[name]!r}: `compress` decides that; {instead}.")
    preset = cifar10() if settings.get("gpus") else on_cores("", settings.get("image_size"))
    base = preset.search.base.replace(student_model=TEACHER_ITSELF, teacher_epochs=0)
    space = {name: values for name, values in preset.search.space.items() if name != "student_model"}
    preset = preset.replace(base=base, space=space)
    parser = OneLineParser(prog="compress", add_help=False)
    add_sweep_flags(parser, preset)
    said = ConfigFile.of(settings)
    if mistakes := said.mistakes(parser):
        raise ValueError("\n".join(mistakes))
    flags = parser.parse_args(said.words(*said.settings))
    return searching(flags, preset, kind="compress")


def _typed_epochs(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in EPOCHS if settings.get(name) is not None}


def _seconds(budget: str | float | None, settings: Mapping[str, Any]) -> float | None:
    """The seconds of a budget.

    Raises:
        ValueError: if it is no time, or `trials` are given, too.
    """
    if budget is None:
        return None
    if settings.get("trials") is not None:
        raise ValueError(f"budget={budget!r} and trials={settings['trials']}: leave one of them out.")
    try:
        return duration(budget if isinstance(budget, str) else f"{budget:.12g}s")
    except (argparse.ArgumentTypeError, ValueError, TypeError):
        raise ValueError(f"budget={budget!r} must be a time such as '90m' or '1h30m', or seconds above 0.") from None


def _fit(
    config: SweepConfig,
    dataset: DatasetRecord,
    screen: Screen,
    settings: Mapping[str, Any],
    budget_s: float | None,
    started: float,
) -> tuple[SweepConfig, Deadline | None]:
    """The sweep within its budget or, on a CPU, within minutes; and its deadline."""
    typed = [name for name, value in settings.items() if value is not None]
    if budget_s is None and config.devices.gpus:
        return config, None
    plan_of = plan_maker(config, dataset, screen)
    if budget_s is None:
        config, deadline = fit_to_minutes(config, plan_of, started=started, typed=typed, keeps_students=True)
        say_unasked(screen, config, plan_of(config)[0], deadline, ARGUMENTS)
        return config, deadline
    shares = (1.0,) if _typed_epochs(settings) else EPOCH_SHARES
    at = started + budget_s - spent_seconds(config.folder, budget_s)
    return fit_to_budget(config, plan_of, at=at, budget_s=budget_s, shares=shares, keeps_students=True)


def _images(train: Any, test: Any, data_dir: Path, class_names: Sequence[str] | None) -> GivenImages:
    if isinstance(train, str | Path):
        if test is not None or class_names is not None:
            raise ValueError(f"train={str(train)!r}: a folder holds train/ and test/; leave test and class_names out.")
        return GivenImages(Path(train).expanduser(), 3)
    return write_images(train, test, data_dir / GIVEN, class_names=class_names)
