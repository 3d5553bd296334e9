"""What every sweep command shares: flags that come to a checked `SweepConfig`, and how a run ends."""

import argparse
import dataclasses
import errno
import inspect
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from optuna.distributions import BaseDistribution

from sweeps import space
from sweeps.address import check_shared, joined
from sweeps.budget import TimedSweep, remember_start
from sweeps.config import SweepConfig, augment_for
from sweeps.durations import duration
from sweeps.objectives import ExchangeRates
from sweeps.screen import Screen
from sweeps.usage import usable_cores
from trainables.configs import KD_LOSSES
from trainables.entries import check_format
from trainables.flags import OneLineParser, add_config_flags, add_flags, config_from_flags, field_docs, flag_name, given
from trainables.flags import with_flags as said_as_flags
from trainables.limits import Limits
from trainables.records import DatasetRecord

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
TRACKING_SCHEMES = ("sqlite:///", "http://", "https://", "postgresql", "mysql", "mssql")
LEAST_FREE_BYTES = 100e6  # MLflow's database, a teacher and a few trials of the smallest sweep
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXIT_CODES = "exit codes: 0 all done, 1 some trials failed, 2 bad input, 130 or 143 interrupted"
_SEARCHED_DOCS = {
    "kd_loss": f"Soft, teacher term, of {', '.join(KD_LOSSES)}; a list such as kd,dkd,dist searches among them",
    "alpha": "Weight of the soft, teacher term, 0 to 1; the labels get 1 - alpha",
    "temperature": "Softens teacher and student logits, > 0; mse does without",
    "dkd_beta": "Weight of the classes that are not the target, >= 0; asked for where kd_loss is dkd",
    "learning_rate": "Peak of the student's schedule (AdamW)",
    "pruning_method": "structured (removes channels), or zeroes weights: l1_unstructured, l1_global, nm_2_4",
    "pruning_ratio": "Fraction removed, in [0, 1)",
    "pruning_criterion": "What structured keeps: magnitude, lamp, taylor or bn_scale",
    "pruning_scope": "Whether structured removes a share of every layer or of the network: layer or global",
    "precision": "Of the ONNX file: fp32, fp16, int8_ptq or int8_qat; a list searches among them",
}


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions, wraps those that are too long, and drops the backticks of docstrings."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for line in text.splitlines():
            lines += [line] if len(indent + line) <= width else textwrap.wrap(line, width - len(indent))
        return "".join(f"{indent}{line}\n" for line in lines)

    def _expand_help(self, action: argparse.Action) -> str:
        return super()._expand_help(action).replace("`", "")


def add_cost_flags(group: "argparse._ArgumentGroup") -> None:
    """`--plan` and `--budget`, which are no settings of a sweep."""
    text = "Say what the sweep would cost in time, memory and disk, after a probe of a few steps; train nothing"
    group.add_argument("--plan", action="store_true", help=f"{text} (default: off)")
    text = (
        "Run as many trials as fit into 6h, 90m, 1h30m or 45s; the same command goes on with those it cuts off, and"
        " after a crash has the rest of that time"
    )
    group.add_argument("--budget", type=duration, metavar="TIME", help=f"{text} (default: none)")


def add_output_flags(group: "argparse._ArgumentGroup") -> None:
    """`--quiet` and `--json`: who reads standard output."""
    either = group.add_mutually_exclusive_group()
    either.add_argument("--quiet", action="store_true", help="Print the result alone (default: off)")
    text = "Print one JSON object a line for every event: started, trial, finished; what is for people goes to stderr"
    either.add_argument("--json", action="store_true", help=f"{text} (default: off)")
    group.add_argument("-h", "--help", action="help", help="Show this text and exit")


def screen_of(flags: argparse.Namespace) -> Screen:
    """Standard output as `add_output_flags` was answered."""
    return Screen("json" if flags.json else "quiet" if flags.quiet else "people")


def add_sweep_flags(
    parser: argparse.ArgumentParser, preset: SweepConfig, *, leave_out: Collection[str] = (), limits: bool = True
) -> None:
    """One flag for every setting of a sweep, the preset's values shown as defaults.

    Args:
        leave_out: fields of `SweepConfig` that the command sets itself.
        limits: whether a candidate may be held to limits.
    """
    group = parser.add_argument_group("run")
    docs = field_docs(SweepConfig)
    group.add_argument("--name", help=f"{docs['name']} (default: preset and a digest of the settings)")
    group.add_argument("--cpus", type=int, metavar="N", help=f"{docs['cpus']} (default: all, {len(usable_cores())})")
    shares = ("cpus_per_trial", "gpus_per_trial")
    add_flags(group, preset, leave_out=("name", "cpus", *shares, "base", "space", "rates", "limits", *leave_out))
    for name, number in zip(shares, (int, float), strict=True):
        if name in leave_out:
            continue
        text = f"{docs[name]} (default: {getattr(preset, name)})"
        group.add_argument(flag_name(name), type=_or_text(number), metavar="X", help=text)
    searched = parser.add_argument_group("search space", "each takes one value, a list such as 1,2,4, or LOW:HIGH")
    for name in (*space.SEARCHED, *space.OPTIONAL):
        shown = space.show(preset.space[name]) if name in preset.space else preset.base.flat()[name]
        searched.add_argument(flag_name(name), metavar="SPACE", help=f"{_SEARCHED_DOCS[name]} (default: {shown})")
    if limits:
        add_flags(parser.add_argument_group("limits", inspect.getdoc(Limits)), preset.limits)
    add_flags(parser.add_argument_group("score", inspect.getdoc(ExchangeRates)), preset.rates)
    add_config_flags(parser, preset.base, leave_out=(*space.SEARCHED, *space.OPTIONAL))


def _or_text(number: type[int] | type[float]) -> Callable[[str], int | float | str]:
    """Reads a number; other text stays what it is, and `SweepConfig` refuses all but `auto`."""

    def read(text: str) -> int | float | str:
        try:
            return number(text)
        except ValueError:
            return text

    return read


def take_spaces(flags: argparse.Namespace) -> dict[str, str]:
    """What was asked of searched parameters; taken out of `flags`, where they are no settings."""
    names = (*space.SEARCHED, *space.OPTIONAL)
    texts = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    for name in names:
        setattr(flags, name, None)
    return texts


def config_of(flags: argparse.Namespace, preset: SweepConfig, searched: Mapping[str, BaseDistribution]) -> SweepConfig:
    """The preset with what the flags say, over a space; `take_spaces` comes first.

    Raises:
        ValueError: if a value is out of its range.
    """
    base = preset.base
    if flags.dataset not in (None, base.data.dataset) or flags.image_size is not None:
        base = dataclasses.replace(base, augment=augment_for(flags.dataset or base.data.dataset, flags.image_size))
    return dataclasses.replace(
        preset,
        **{"cpus": len(usable_cores())}
        | given(flags, SweepConfig)
        | joined(flags.address, gpus=flags.gpus, cpus=flags.cpus),
        base=config_from_flags(base, flags),
        space=searched,
        rates=dataclasses.replace(preset.rates, **given(flags, ExchangeRates)),
        limits=dataclasses.replace(preset.limits, **given(flags, Limits)),
    )


def check(config: SweepConfig) -> None:
    """Refuse what cannot work before anything is trained."""
    for folder, flag in ((config.out, "--out"), (config.data_dir, "--data-dir")):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(f"{flag} {folder}: cannot be written ({error.strerror}); name a folder you own.") from None
    free = shutil.disk_usage(config.out).free
    if free < LEAST_FREE_BYTES:
        raise ValueError(
            f"--out {config.out}: {free / 1e6:.1f} MB are free on its disk, and the smallest sweep takes"
            f" {LEAST_FREE_BYTES / 1e6:.0f} MB. {_room(config)} or name a folder on another disk."
        )
    try:
        check_format(config.out / "store", None, str(config.out / "store"))
    except ValueError as error:
        raise ValueError(f"--out {config.out}: {error}") from error
    check_shared(config.out, config.address, config.storage)
    uri = config.tracking_uri
    if uri is not None and not uri.startswith(TRACKING_SCHEMES):
        raise ValueError(f"--tracking-uri {uri}: must begin with {', '.join(TRACKING_SCHEMES)}.")
    import torch

    from trainables.stages.backends import check_runtime
    from trainables.stages.models import check_model

    for name in ("teacher_model", "student_model"):
        try:
            check_model(config.base.flat()[name])
        except ValueError as error:
            raise ValueError(f"{flag_name(name)}: {error}") from error
    check_runtime(config.base.measure.latency_runtime, on_gpu=config.gpus > 0)
    there = torch.cuda.device_count()
    if config.gpus > there and config.address is None:
        raise ValueError(f"--gpus {config.gpus}: this machine has {there}; ask for at most that, or 0 for the CPU.")


def check_limits(config: SweepConfig, dataset: DatasetRecord) -> None:
    """Refuse limits that no candidate of the space can keep to; a second or two, and only if there are limits."""
    if config.limits != Limits():
        from sweeps.reach import check_reach

        check_reach(config, dataset)


def with_flags(message: str) -> str:
    """The message with `alpha=2.0` said as `--alpha 2.0`: what the person typed."""
    names = [f.name for f in dataclasses.fields(SweepConfig)] + list(SweepConfig(name="x").base.flat())
    return said_as_flags(message, [*names, *(f.name for p in (ExchangeRates, Limits) for f in dataclasses.fields(p))])


def run(config: SweepConfig, dataset: DatasetRecord, parser: OneLineParser, screen: Screen) -> int:
    """Run a sweep; returns the exit code."""
    from sweeps.interrupts import Interrupted  # Ray takes a second; bad flags need not wait for it
    from sweeps.launch import run_sweep
    from sweeps.sweep_folder import InputError

    damaged = _moved_aside(config.out)
    code = 0
    screen.launch()
    screen.wait("Starting Ray and MLflow")
    try:
        code = FAILED if run_sweep(config, dataset, screen) else 0
    except InputError as error:
        screen.go_on()
        parser.error(with_flags(str(error)))
    except KeyboardInterrupt as stop:
        text = f"Stopped. What is finished is in {config.folder}; the same command goes on from there."
        screen.print(text, soft_wrap=True)
        asked = stop.code if isinstance(stop, Interrupted) else INTERRUPTED
        code = 0 if isinstance(config, TimedSweep) and config.deadline.over() else asked
    except Exception as error:  # Tune raises its own for what happens in its callbacks
        if (full := _full_disk(error)) is None:
            raise
        text = f"{full.filename or config.out}: {full.strerror}. {_room(config)}; the same command goes on."
        screen.print(text, style="yellow", soft_wrap=True)
        code = FAILED
    finally:
        screen.go_on()
    if screen.start_s is not None:
        remember_start(config.out, screen.start_s)
    for folder in sorted(_moved_aside(config.out) - damaged):
        screen.print(f"{folder} was damaged: it was moved aside and computed again.", style="yellow", soft_wrap=True)
    tell_end(config, screen, code)
    return code


def tell_end(config: SweepConfig, screen: Screen, code: int) -> None:
    """The last event of a sweep, for programs."""
    if screen.mode != "json":
        return
    from sweeps.standing import Standing

    there = Standing(phase="end", title="", trials=0, done=0, concurrency=1, folder=config.folder)
    reused, models = there.reused(), config.folder / "trials"
    screen.event(
        "finished",
        sweep=config.name,
        exit_code=code,
        trials=dict(there.states),
        front=[
            {"trial": int(str(label)), "model": str(models / f"{int(str(label)):05}" / "model.onnx"), **row}
            for label, row in there.front().to_dict("index").items()
        ],
        reuse={"trials": reused.trials, "of": reused.of, "seconds": round(reused.seconds, 1)},
        folder=str(config.folder),
    )


def _full_disk(error: BaseException | None) -> OSError | None:
    """The full disk, or quota, that is behind an error; None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def _moved_aside(out: Path) -> set[Path]:
    """Damaged results of stages; workers speak to nobody, so that the command tells of new ones."""
    return set((out / "store").glob("*/*.corrupt-*"))


def _room(config: SweepConfig) -> str:
    return f"Make room (python -m trainables.store gc --out {config.out})"
