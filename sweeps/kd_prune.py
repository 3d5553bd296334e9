"""Search distillation and pruning settings for the best trade-off of accuracy, latency and size.

    python sweeps/kd_prune.py --preset quick
    python sweeps/kd_prune.py --gpus 4
    python sweeps/kd_prune.py --gpus 4 --plan          what that would cost in time, memory and disk; trains nothing
    python sweeps/kd_prune.py --gpus 4 --budget 6h     as many trials as fit into that time (6h, 90m, 1h30m, 45s)

The same command goes on where an interrupted sweep stopped.
"""

import argparse
import dataclasses
import sys
import time

from rich.console import Console

from sweeps import space
from sweeps.command import (
    BAD_INPUT,
    FAILED,
    INTERRUPTED,
    Deadline,
    TimedSweep,
    add_cost_flags,
    add_sweep_flags,
    check,
    config_of,
    in_words,
    look_up,
    run,
    show,
    take_spaces,
    trials_within,
    with_flags,
)
from sweeps.config import PRESETS, SweepConfig, default_name
from trainables.flags import OneLineParser
from trainables.records import DatasetRecord
from trainables.stages import data

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "main"]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 some trials failed, 2 bad input, 130 interrupted."""
    started = time.monotonic()
    words = sys.argv[1:] if argv is None else argv
    parser, flags = _parse(words)
    console = Console(highlight=False)
    try:
        config = _config(flags)
        check(config)
        with console.status(f"Reading the images of {config.base.data.dataset}"):
            dataset = data.prepare(config.base.data, config.data_dir)
        if flags.plan or flags.budget:
            config = _planned(config, dataset, flags, console, started)
            if flags.plan:
                return 0
    except ValueError as error:
        parser.error(with_flags(str(error)))
    return run(config, dataset, parser, console)


def _parse(words: list[str]) -> tuple[OneLineParser, argparse.Namespace]:
    first = OneLineParser(prog="kd_prune.py", add_help=False)
    first.add_argument("--preset", choices=sorted(PRESETS), default="cifar10")
    preset = PRESETS[first.parse_known_args(words)[0].preset]()
    parser = OneLineParser(
        prog="kd_prune.py",
        usage="kd_prune.py [FLAGS]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="cifar10",
        help="What the other flags start from (default: cifar10)",
    )
    add_cost_flags(parser)
    add_sweep_flags(parser, preset)
    return parser, parser.parse_args(words)


def _config(flags: argparse.Namespace) -> SweepConfig:
    if flags.budget and flags.trials is not None:
        raise ValueError(
            f"--budget and --trials {flags.trials}: a budget chooses the number of trials; leave one of them out."
        )
    preset = PRESETS[flags.preset]()
    texts = take_spaces(flags)
    searched = {**preset.space, **{name: space.parse(name, text) for name, text in texts.items()}}
    config = config_of(flags, preset, searched)
    return config if flags.name else dataclasses.replace(config, name=default_name(flags.preset, config.identity()))


def _planned(
    config: SweepConfig, dataset: DatasetRecord, flags: argparse.Namespace, console: Console, started: float
) -> SweepConfig:
    """Probe, then print the plan, or make the sweep fit its budget; a budget counts from `started`.

    Raises:
        ValueError: if the budget is too small for one trial.
    """
    from sweeps.plan import estimate, probe

    hits = look_up(config, dataset, space.first_trials(config.space))
    measured = probe(config, dataset)
    plan = estimate(measured, config, hits)
    if flags.budget:
        deadline = Deadline(at=started + flags.budget, trial_s=plan.trial_s.expected)
        fit = trials_within(deadline.left(), plan, budget_s=flags.budget)
        config = TimedSweep(**vars(config) | {"trials": hits.trials + fit, "deadline": deadline})
        plan = estimate(measured, config, hits)
        console.print(
            f"A budget of {in_words(flags.budget)}: {plan.trials} trials of about {in_words(plan.trial_s.expected)}."
        )
    if flags.plan:
        show(console, plan, config, hits)
    return config


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:  # before the sweep had begun
        raise SystemExit(INTERRUPTED) from None
