"""Every combination of a few settings, with several training seeds.

kd-grid       temperature 2,4,6; alpha 0.5,0.7,0.9; pruning_ratio 0.2,0.3,0.5
augmentation  without and with RandAugment (magnitude 9), without and with
              Mixup (0.2), beside crop and flip
distillation  kd_loss kd,none
pruning       pruning_method structured,l1_unstructured x pruning_ratio 0.3,0.5,0.7
precision     precision fp32,int8_ptq,int8_qat
pruned        pruning_ratio 0,0.2,0.3 by l1_unstructured
amp           train_precision fp32,amp

A flag of a varied setting takes a list instead (--temperature 1,4). The same
command goes on where it was interrupted.
"""

import argparse
import itertools
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

if __name__ == "__main__":  # modules on PYTHONPATH must not hide our packages, nor those beside this file the user's
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)

from sweeps.display.console import Screen
from sweeps.planning.packing import prices, resolve_shares
from sweeps.running.interface import config_file
from sweeps.running.interface.command import EXIT_CODES, FAILED, INTERRUPTED, check, check_networks, run
from sweeps.running.interface.flags import (
    Help,
    add_output_flags,
    add_sweep_flags,
    config_of,
    screen_of,
    take_spaces,
    with_flags,
)
from sweeps.running.interface.sweep_toml import sweep_toml
from sweeps.search import space
from sweeps.search.config import SweepConfig
from sweeps.search.presets import PRESETS, default_name
from trainables.config.flags import OneLineParser, flag_name
from trainables.layout import JOURNAL
from trainables.records.stages import DatasetRecord
from trainables.stages.data import prepared

GRIDS: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "kd-grid": {"temperature": (2.0, 4.0, 6.0), "alpha": (0.5, 0.7, 0.9), "pruning_ratio": (0.2, 0.3, 0.5)},
    "augmentation": {"randaugment_magnitude": (None, 9), "mixup_alpha": (None, 0.2)},
    "distillation": {"kd_loss": ("kd", "none")},
    "pruning": {"pruning_method": ("structured", "l1_unstructured"), "pruning_ratio": (0.3, 0.5, 0.7)},
    "precision": {"precision": ("fp32", "int8_ptq", "int8_qat")},
    "pruned": {"pruning_method": ("l1_unstructured",), "pruning_ratio": (0.0, 0.2, 0.3)},
    "amp": {"train_precision": ("fp32", "amp")},
}
EXAMPLES = f"""\
examples:
  python sweeps/ablation.py --preset distillation --base quick
  python sweeps/ablation.py --preset kd-grid --temperature 1,4 --seeds 1
  python sweeps/ablation.py --preset kd-grid --seeds 5 --gpus 4

{EXIT_CODES}
"""
# Settings that make a sweep an ablation: every cell is trained to its end.
FIXED: Mapping[str, Any] = {"sampler": "grid", "stopper": "off", "reuse_probability": 0.0, "champions": 0}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 some trials failed, 2 bad input, 130 or 143 interrupted."""
    parser, flags = parse(sys.argv[1:] if argv is None else argv)
    screen = screen_of(flags)
    try:
        with screen.alone():
            return _run(parser, flags, screen)
    except KeyboardInterrupt:  # before the sweep had begun
        return INTERRUPTED


def _run(parser: OneLineParser, flags: argparse.Namespace, screen: Screen) -> int:
    try:
        typed = dict(vars(flags))
        config = config_from(flags)
        asked = sweep_toml(typed, config, parser, "ablation.py")
        check(config)
        with screen.busy(f"Reading the images of {config.search.base.data.dataset}"):
            dataset = prepared.prepare(config.search.base.data, config.places.data_dir)
        if lacking := prepared.left_out(config.search.base.data.dataset):
            screen.print(lacking, style="yellow", markup=False, soft_wrap=True)
        check_networks(config, dataset, flags.teacher_weights)
        config = resolve_shares(config, screen)
        for line in prices(config):
            screen.print(line)
    except ValueError as error:
        parser.error(with_flags(str(error)))
    try:
        enqueue_grid(config, dataset)
    except ValueError as error:
        parser.error(with_flags(str(error)))
    code = run(config, dataset, parser, screen, sweep_toml=asked)
    if code not in (0, FAILED):
        return code
    try:
        conclude(config, dataset, screen)
    except (ValueError, OSError) as error:  # MLflow is away, or the disk is full
        screen.print(f"No table: {error}. The same command makes it.", style="yellow", soft_wrap=True)
        return FAILED
    return code


def parse(words: list[str]) -> tuple[OneLineParser, argparse.Namespace]:
    """The parser, and what the words of the command line say."""
    first = OneLineParser(prog="ablation.py", add_help=False)
    first.add_argument("--base", dest="start", choices=sorted(PRESETS))
    first.add_argument("--gpus")
    file = config_file.read(words, first)
    known = first.parse_known_args([*file.words("base", "gpus"), *words])[0]
    start = known.start or ("quick" if known.gpus in (None, "0") else "cifar10")
    preset = _start(start).replace(space={})
    parser = OneLineParser(
        prog="ablation.py",
        usage="python sweeps/ablation.py --preset GRID [FLAGS]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=Help,
        add_help=False,
    )
    group = parser.add_argument_group("command")
    group.add_argument("--preset", choices=sorted(GRIDS), required=True, help="What is varied")
    text = "What the other flags start from (default: cifar10 with --gpus, else quick, which takes minutes)"
    group.add_argument("--base", dest="start", choices=sorted(PRESETS), default=start, help=text)
    config_file.add_config_flag(group)
    add_output_flags(group)
    leave_out = ("trials", "objective", "search_seed", *FIXED)
    add_sweep_flags(parser, preset, leave_out=leave_out, limits=False)
    return parser, parser.parse_args([*file.checked(parser), *words])


def _start(name: str) -> SweepConfig:
    """A preset in which all candidates train for as many epochs, and with one loss: only the grid makes them differ."""
    preset = PRESETS[name]()
    return preset.replace(base=preset.search.base.replace(recovery_budget="epochs", kd_anneal=0.0))


def config_from(flags: argparse.Namespace) -> SweepConfig:
    """The sweep that flags ask for.

    Raises:
        ValueError: if a value is out of its range, or makes no grid.
    """
    preset = _start(flags.start)
    seeds = flags.seeds if flags.seeds is not None else preset.selection.seeds
    if seeds < 1:
        raise ValueError(f"`seeds >= 1` must hold, but got seeds={seeds}.")
    axes: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(_choices(flags, name, choices)) for name, choices in GRIDS[flags.preset].items()
    }
    fixed: dict[str, object] = {}
    for name, text in take_spaces(flags).items():
        values = space.parse(name, text)
        if name in axes:
            axes[name] = values
        elif isinstance(values, CategoricalDistribution) and len(values.choices) == 1:
            fixed[name] = values.choices[0]
        else:
            raise ValueError(
                f"{flag_name(name)} {text}: --preset {flags.preset} varies {', '.join(axes)} alone; give one value."
            )
    first_seed = flags.seed or 0
    axes["seed"] = CategoricalDistribution(range(first_seed, first_seed + seeds))
    if not math.isfinite(space.size(axes, preset.search.base)):
        raise ValueError("learning_rate as a range has no grid; give it as a list.")
    config = config_of(flags, preset.replace(base=preset.search.base.replace(**fixed), **FIXED), axes)
    config = config.replace(trials=int(space.size(axes, config.search.base)))
    return config if flags.name else config.replace(name=default_name(flags.preset, config.identity()))


def _choices(flags: argparse.Namespace, name: str, choices: tuple[object, ...]) -> tuple[object, ...]:
    """A preset's choices; for a setting that is compared on and off, its flag gives the value of on."""
    on = getattr(flags, name, None) if name not in (*space.SEARCHED, *space.OPTIONAL) else None
    if on is None:
        return choices
    if None not in choices:
        values = ", ".join(map(str, choices))
        raise ValueError(f"{flag_name(name)} {on}: --preset {flags.preset} compares {values}; leave the flag out.")
    return (None, on)


def enqueue_grid(config: SweepConfig, dataset: DatasetRecord) -> None:
    """Queue the grid in a new study, one seed after the other: if cut short, whole grids of fewer seeds are done.

    Raises:
        InputError: if the name belongs to another sweep or is in use.
    """
    from sweeps.search.folder import check_identity, sole_driver
    from sweeps.search.objectives import study_directions
    from sweeps.search.study_file import open_journal

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with sole_driver(config.folder):
        check_identity(config, dataset)
        study = optuna.create_study(
            storage=open_journal(config.folder / JOURNAL),
            study_name=config.name,
            directions=study_directions(config.search.objective),
            load_if_exists=True,
        )
        for point in grid(config):  # some may be there already, all of them unless a driver died in this loop
            study.enqueue_trial(point, skip_if_exists=True)


def grid(config: SweepConfig) -> list[dict[str, Any]]:
    """Every combination of the space, the seed varying last of all."""
    names = sorted(config.search.space, key=lambda name: name != "seed")
    choices = [values_of(config.search.space[name]) for name in names]
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*choices)]


def values_of(distribution: BaseDistribution) -> tuple[Any, ...]:
    """All values of a list or a stepped range."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    assert isinstance(distribution, FloatDistribution) and distribution.step is not None
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return tuple(round(distribution.low + i * distribution.step, 10) for i in range(count))


def conclude(config: SweepConfig, dataset: DatasetRecord, screen: Screen) -> None:
    """Write tables and picture of the finished cells to the screen, OUT/sweeps/NAME/ablation/ and the MLflow run.

    Raises:
        ValueError: if MLflow is away.
    """
    from analysis.pages.ablation import cells, cells_table, write_ablation
    from analysis.reading.runs import Runs
    from sweeps.running.outcome import add_files

    by = [name for name in config.search.space if name != "seed"]

    def make(runs: Runs) -> list[Path]:
        screen.print(cells_table(cells(runs.frame, by), by))
        return write_ablation(runs, by, config.folder / "ablation")

    add_files(config, dataset, make)
    screen.print(f"Ablation: {config.folder / 'ablation'}", soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(main())
