"""Search distillation and pruning settings: accuracy against latency and size.

Without --preset and --gpus it takes what ends in minutes on these cores, and
says what and how long. The same command goes on where it was interrupted.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # modules on PYTHONPATH must not hide our packages, nor those beside this file the user's
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)

from sweeps.display.console import Screen
from sweeps.display.durations import in_words
from sweeps.planning.budget import (
    EPOCH_SHARES,
    EPOCHS,
    Deadline,
    fit_to_budget,
    spent_seconds,
    start_seconds,
)
from sweeps.planning.packing import prices, resolve_shares
from sweeps.planning.wording import describe
from sweeps.running.interface import config_file
from sweeps.running.interface.command import (
    BAD_INPUT,
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    check,
    check_limits,
    check_networks,
    run,
)
from sweeps.running.interface.flags import (
    Help,
    add_cost_flags,
    add_output_flags,
    add_sweep_flags,
    screen_of,
    searching,
    with_flags,
)
from sweeps.running.interface.sweep_toml import sweep_toml
from sweeps.search.config import SweepConfig
from sweeps.search.folder import check_free
from sweeps.search.presets import PRESETS, epochs_for, kind_of, on_cores
from trainables.config.flags import OneLineParser
from trainables.records.stages import DatasetRecord
from trainables.stages.data import prepared

if TYPE_CHECKING:
    from sweeps.running.interface.result import Result

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "main", "sweep"]

EXAMPLES = f"""\
examples:
  python sweeps/kd_prune.py                         small images, CPU, minutes
  python sweeps/kd_prune.py --dataset folder:photos --image-size 64
  python sweeps/kd_prune.py --dataset cifar10 --budget 2h
  python sweeps/kd_prune.py --max-latency-ms 5 --max-size-mb 2 --max-drop 1
  python sweeps/kd_prune.py --alpha 0.5:1 --pruning-ratio 0.2,0.5
  python sweeps/kd_prune.py --gpus 4 --plan         what it would cost
  python sweeps/kd_prune.py --gpus 4 --budget 6h    epochs and trials that fit
  python sweeps/kd_prune.py --gpus 4 --gpus-per-trial 0.25 --trials 200
  python sweeps/kd_prune.py --preset quick --json > events.jsonl

{EXIT_CODES}
"""
DIGITS = "digits"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 some trials failed, 2 bad input, 130 or 143 interrupted."""
    started = time.monotonic()
    words = sys.argv[1:] if argv is None else argv
    parser, flags = _parse(words)
    screen = screen_of(flags)
    try:
        with screen.alone():
            return _run(parser, flags, screen, started)[1]
    except KeyboardInterrupt:  # before the sweep had begun
        return INTERRUPTED


def sweep(
    config: str | Path | Mapping[str, Any] | None = None,
    /,
    *,
    plan: bool = False,
    retry_failed: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> "Result":
    """Run the sweep that this command runs, or resume it, and return its front and files.

    The same call goes on where it was interrupted.

    Args:
        config: a TOML file of settings, such as the sweep.toml that every sweep leaves, or the same as a mapping.
        plan: print what the sweep would cost in time, memory and disk, after a probe of a few steps; train nothing.
            The result is then that of an earlier call, or empty.
        retry_failed: run the failed trials again, once what made them fail is mended.
        quiet: print the result alone.
        settings: by the names of the flags, which `--help` explains with their units: `preset="quick"`, `trials=30`,
            `budget="1h30m"`, `max_latency_ms=5`, `pruning_ratio="0.2:0.8"`, `dataset="folder:photos"`, `out="runs"`.
            They override `config`.

    Raises:
        ValueError: naming the flag, what is wrong and the fix; one line for each mistake.
        KeyboardInterrupt: if Ctrl-C or SIGTERM ended it early; what is finished is kept.
    """
    from sweeps.running.interface.given_model import importable  # torch takes seconds; bad settings need not wait
    from sweeps.running.interface.result import Result

    started = time.monotonic()
    words = {"--plan": plan, "--retry-failed": retry_failed, "--quiet": quiet}
    said = config_file.from_program(config, settings)
    parser, flags = _parse([word for word, wanted in words.items() if wanted], said, config_file.RaisingParser)
    with importable(Path.cwd()):  # as Python itself does where a notebook or script lies
        made, code = _run(parser, flags, screen_of(flags), started)
    if code >= INTERRUPTED:
        raise KeyboardInterrupt(f"exit code {code}")
    return Result(
        name=made.name,
        out=made.places.out,
        tracking_uri=made.places.tracking_uri,
        complete=code == 0 and not plan,
    )


def _run(parser: OneLineParser, flags: argparse.Namespace, screen: Screen, started: float) -> tuple[SweepConfig, int]:
    """The sweep that the flags ask for, and the exit code."""
    try:
        typed = argparse.Namespace(**vars(flags))
        config = _config(flags)
        check(config)
        check_free(config.folder)
        with screen.busy(f"Reading the images of {config.search.base.data.dataset}"):
            dataset = prepared.prepare(config.search.base.data, config.places.data_dir)
        if lacking := prepared.left_out(config.search.base.data.dataset):
            screen.print(lacking, style="yellow", markup=False, soft_wrap=True)
        config = _suited(config, typed, dataset.num_train)
        check_networks(config, dataset, typed.teacher_weights)
        check_limits(config, dataset)
        asked, config = config, resolve_shares(config, screen)
        for line in prices(config):
            screen.print(line)
        deadline = None
        if typed.plan or typed.budget or _minutes(typed):
            config, deadline = _plan(config, dataset, typed, screen, started)
            if typed.plan:
                return config, 0
        named = {"budget": deadline and deadline.budget_s}
        toml = sweep_toml(vars(typed) | named, asked, parser, "kd_prune.py", fitted=_fits_cores(typed))
    except ValueError as error:
        parser.error(with_flags(str(error)))
    again = typed.retry_failed
    return config, run(config, dataset, parser, screen, deadline=deadline, retry_failed=again, sweep_toml=toml)


def _parse(
    words: list[str], file: config_file.ConfigFile | None = None, kind: type[OneLineParser] = OneLineParser
) -> tuple[OneLineParser, argparse.Namespace]:
    """The parser, and what the words say, and the file, which the words name unless it is given."""
    first = kind(prog="kd_prune.py", add_help=False)
    first.add_argument("--preset", choices=sorted(PRESETS))
    for flag in ("--gpus", "--dataset"):
        first.add_argument(flag)
    file = file or config_file.read(words, first)
    known = first.parse_known_args([*file.words("preset", "gpus", "dataset"), *words])[0]
    parser = kind(
        prog="kd_prune.py",
        usage="python sweeps/kd_prune.py [FLAGS]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=Help,
        add_help=False,
    )
    group = parser.add_argument_group("command")
    text = (
        "What the other flags start from: cifar10 (ResNet-18, for GPUs) or quick (small images of digits) (default:"
        " cifar10 with --gpus, else what ends in minutes: quick or, with --dataset, small networks and a budget)"
    )
    group.add_argument("--preset", choices=sorted(PRESETS), help=text)
    config_file.add_config_flag(group)
    add_cost_flags(group)
    add_output_flags(group)
    add_sweep_flags(parser, _preset(known))
    return parser, parser.parse_args([*file.checked(parser), *words])


def _config(flags: argparse.Namespace, preset: SweepConfig | None = None) -> SweepConfig:
    """The sweep that the flags ask for, over the preset that they name, or another one."""
    if flags.budget and flags.trials is not None:
        raise ValueError(
            f"--budget and --trials {flags.trials}: a budget chooses the number of trials; leave one of them out."
        )
    kind = kind_of(flags.dataset) if _fits_cores(flags) else _preset_name(flags)
    return searching(flags, preset or _preset(flags), kind=kind)


def _suited(config: SweepConfig, typed: argparse.Namespace, images: int) -> SweepConfig:
    """The sweep with the epochs that suit the user's images, where neither a preset nor a GPU was asked for."""
    if not _fits_cores(typed):
        return config
    preset = _preset(typed)
    suited = epochs_for(images, config.search.base.training.batch_size)
    preset = preset.replace(base=preset.search.base.replace(**suited))
    return _config(argparse.Namespace(**vars(typed)), preset)


def _preset_name(flags: argparse.Namespace) -> str:
    """The preset that is named, or that goes with a GPU or without one."""
    return flags.preset or ("cifar10" if _on_gpus(flags) else "quick")


def _preset(flags: argparse.Namespace) -> SweepConfig:
    if _fits_cores(flags):
        return on_cores(flags.dataset, getattr(flags, "image_size", None))
    return PRESETS[_preset_name(flags)]()


def _on_gpus(flags: argparse.Namespace) -> bool:
    return flags.gpus not in (None, 0, "0")


def _minutes(flags: argparse.Namespace) -> bool:
    """Whether nobody has named a preset or asked for a GPU."""
    return flags.preset is None and not _on_gpus(flags)


def _fits_cores(flags: argparse.Namespace) -> bool:
    """Whether the images, too, are the user's choice, so that the settings have to suit them."""
    return _minutes(flags) and flags.dataset not in (None, DIGITS)


def _plan(
    config: SweepConfig, dataset: DatasetRecord, flags: argparse.Namespace, screen: Screen, started: float
) -> tuple[SweepConfig, Deadline | None]:
    """Probe, then print the plan, or make the sweep fit its budget; a budget counts from `started`.

    Raises:
        ValueError: if the budget is too small for one trial.
    """
    from sweeps.planning.cost import show
    from sweeps.planning.unasked import fit_teacher, fit_to_minutes, plan_maker, say_unasked

    plan_of = plan_maker(config, dataset, screen)
    typed = [name for name, value in vars(flags).items() if value is not None]
    keeps_students = "student_model" in typed  # named ones: a budget leaves none of them out
    deadline = None
    if flags.budget:
        if _fits_cores(flags) and "teacher_epochs" not in typed:
            config = fit_teacher(config, plan_of, flags.budget)
        shares = (1.0,) if any(name in typed for name in EPOCHS) else EPOCH_SHARES
        at = started + flags.budget - spent_seconds(config.folder, flags.budget)
        config, deadline = fit_to_budget(
            config, plan_of, at=at, budget_s=flags.budget, shares=shares, keeps_students=keeps_students
        )
        spent = deadline.spent_before(started)
        before = f", {in_words(spent)} of it spent before" if spent >= 1 else ""
        screen.print(f"A budget of {in_words(flags.budget)}{before}: {describe(config, plan_of(config)[0])}.")
    else:
        if _fits_cores(flags):
            config, deadline = fit_to_minutes(
                config, plan_of, started=started, typed=typed, keeps_students=keeps_students
            )
        if _minutes(flags):
            say_unasked(screen, config, plan_of(config)[0], deadline)
    if flags.plan:
        plan, hits = plan_of(config)
        screen.event("plan", sweep=config.name, **dataclasses.asdict(plan))
        show(screen, plan, config, hits, measured_start=start_seconds(config.places.out) is not None)
    return config, deadline


if __name__ == "__main__":
    raise SystemExit(main())
