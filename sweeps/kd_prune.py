"""Search distillation and pruning settings for the best trade-off of accuracy, latency and size.

    python sweeps/kd_prune.py --preset quick
    python sweeps/kd_prune.py --gpus 4

The same command goes on where an interrupted sweep stopped.
"""

import argparse
import dataclasses
import inspect
import os
import re
import sys
import tempfile

from rich.console import Console

from sweeps import space
from sweeps.config import PRESETS, SweepConfig, augment_for, default_name
from sweeps.objectives import ExchangeRates
from trainables.configs import KD_LOSSES
from trainables.flags import (
    OneLineParser,
    add_config_flags,
    add_flags,
    config_from_flags,
    field_docs,
    flag_name,
    given,
)
from trainables.limits import Limits
from trainables.stages import data

TRACKING_SCHEMES = ("sqlite:///", "http://", "https://", "postgresql", "mysql", "mssql")
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 some trials failed, 2 bad input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    parser, flags = _parse(words)
    console = Console(highlight=False)
    try:
        config = _config(flags)
        _check(config)
        dataset = data.prepare(config.base.data, config.data_dir)
    except ValueError as error:
        parser.error(_with_flags(str(error)))
    from sweeps.launch import Interrupted, run_sweep  # Ray takes a second; bad flags need not wait for it
    from sweeps.sweep_folder import InputError

    try:
        return FAILED if run_sweep(config, dataset, console) else 0
    except InputError as error:
        parser.error(_with_flags(str(error)))
    except (Interrupted, KeyboardInterrupt):
        console.print(f"Stopped. What is finished is in {config.folder}; the same command goes on from there.")
        return INTERRUPTED


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
    _add_sweep_flags(parser, preset)
    add_config_flags(parser, preset.base, leave_out=space.SEARCHED)
    return parser, parser.parse_args(words)


def _add_sweep_flags(parser: OneLineParser, preset: SweepConfig) -> None:
    group = parser.add_argument_group("sweep")
    group.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="cifar10",
        help="What the other flags start from (default: cifar10)",
    )
    docs = field_docs(SweepConfig)
    group.add_argument("--name", help=f"{docs['name']} (default: preset and a digest of the settings)")
    group.add_argument("--cpus", type=int, metavar="N", help=f"{docs['cpus']} (default: all, {_cores()})")
    add_flags(group, preset, leave_out=("name", "cpus", "base", "space", "rates", "limits"))
    searched = parser.add_argument_group("search space", "each takes one value, a list such as 1,2,4, or LOW:HIGH")
    for name in space.SEARCHED:
        searched.add_argument(
            flag_name(name), metavar="SPACE", help=f"{_SEARCHED_DOCS[name]} (default: {space.show(preset.space[name])})"
        )
    add_flags(parser.add_argument_group("limits", inspect.getdoc(Limits)), preset.limits)
    add_flags(parser.add_argument_group("score", inspect.getdoc(ExchangeRates)), preset.rates)


_SEARCHED_DOCS = {
    "kd_loss": f"Soft, teacher term, of {', '.join(KD_LOSSES)}; a list such as kd,dkd,dist searches among them",
    "alpha": "Weight of the soft, teacher term, 0 to 1; the labels get 1 - alpha",
    "temperature": "Softens teacher and student logits, > 0; mse does without",
    "dkd_beta": "Weight of the classes that are not the target, >= 0; asked for where kd_loss is dkd",
    "learning_rate": "Peak of the student's schedule (AdamW)",
    "pruning_method": "structured (removes channels) or l1_unstructured (zeroes conv weights)",
    "pruning_ratio": "Fraction removed, in [0, 1)",
}


def _config(flags: argparse.Namespace) -> SweepConfig:
    preset = PRESETS[flags.preset]()
    base = preset.base
    if flags.dataset not in (None, base.data.dataset) or flags.image_size is not None:
        base = dataclasses.replace(base, augment=augment_for(flags.dataset or base.data.dataset, flags.image_size))
    spaces = {name: getattr(flags, name) for name in space.SEARCHED if getattr(flags, name) is not None}
    for name in space.SEARCHED:
        setattr(flags, name, None)
    config = dataclasses.replace(
        preset,
        **{"cpus": _cores()} | given(flags, SweepConfig),
        base=config_from_flags(base, flags),
        space={**preset.space, **{name: space.parse(name, text) for name, text in spaces.items()}},
        rates=dataclasses.replace(preset.rates, **given(flags, ExchangeRates)),
        limits=dataclasses.replace(preset.limits, **given(flags, Limits)),
    )
    return config if flags.name else dataclasses.replace(config, name=default_name(flags.preset, config.identity()))


def _check(config: SweepConfig) -> None:
    """Refuse what cannot work before anything is trained."""
    for folder, flag in ((config.out, "--out"), (config.data_dir, "--data-dir")):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(f"{flag} {folder}: cannot be written ({error.strerror}); name a folder you own.") from None
    uri = config.tracking_uri
    if uri is not None and not uri.startswith(TRACKING_SCHEMES):
        raise ValueError(f"--tracking-uri {uri}: must begin with {', '.join(TRACKING_SCHEMES)}.")
    import torch

    from trainables.stages.models import check_model

    for name in ("teacher_model", "student_model"):
        try:
            check_model(config.base.flat()[name])
        except ValueError as error:
            raise ValueError(f"{flag_name(name)}: {error}") from error
    there = torch.cuda.device_count()
    if config.gpus > there:
        raise ValueError(f"--gpus {config.gpus}: this machine has {there}; ask for at most that, or 0 for the CPU.")


def _with_flags(message: str) -> str:
    """The message with `alpha=2.0` said as `--alpha 2.0`: what the person typed."""
    names = [f.name for f in dataclasses.fields(SweepConfig)] + list(SweepConfig(name="x").base.flat())
    names += [f.name for part in (ExchangeRates, Limits) for f in dataclasses.fields(part)]
    pattern = re.compile(rf"(?<![\w-])({'|'.join(sorted(names, key=len, reverse=True))})=")
    return pattern.sub(lambda match: f"{flag_name(match[1])} ", message)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    raise SystemExit(main())
