"""What every sweep command shares: flags that come to a checked `SweepConfig`, and what is said about cost."""

import argparse
import dataclasses
import inspect
import math
import os
import re
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from rich.console import Console

from sweeps import space
from sweeps.config import SweepConfig, augment_for
from sweeps.objectives import ExchangeRates
from trainables.configs import KD_LOSSES
from trainables.flags import OneLineParser, add_config_flags, add_flags, config_from_flags, field_docs, flag_name, given
from trainables.flags import with_flags as said_as_flags
from trainables.limits import Limits
from trainables.records import DatasetRecord

if TYPE_CHECKING:
    from sweeps.plan import Hits, Plan

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
TRACKING_SCHEMES = ("sqlite:///", "http://", "https://", "postgresql", "mysql", "mssql")
START_S = 15.0  # Ray, MLflow's database and the first worker: 10 to 15 s on two cores
MB = 1e6
DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_SEARCHED_DOCS = {
    "kd_loss": f"Soft, teacher term, of {', '.join(KD_LOSSES)}; a list such as kd,dkd,dist searches among them",
    "alpha": "Weight of the soft, teacher term, 0 to 1; the labels get 1 - alpha",
    "temperature": "Softens teacher and student logits, > 0; mse does without",
    "dkd_beta": "Weight of the classes that are not the target, >= 0; asked for where kd_loss is dkd",
    "learning_rate": "Peak of the student's schedule (AdamW)",
    "pruning_method": "structured (removes channels) or l1_unstructured (zeroes conv weights)",
    "pruning_ratio": "Fraction removed, in [0, 1)",
}


def duration(text: str) -> float:
    """Seconds of `6h`, `90m`, `1h30m` or `45s`.

    Raises:
        argparse.ArgumentTypeError: if the text is no such thing, or nothing at all.

    Example:
        >>> duration("1h30m")
        5400.0
    """
    match = DURATION.fullmatch(text)
    parts = match.groups() if match else ()
    seconds = sum(float(part or 0) * unit for part, unit in zip(parts, (3600.0, 60.0, 1.0), strict=False))
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; write it as 6h, 90m, 1h30m or 45s.")
    return seconds


def in_words(seconds: float) -> str:
    """A length of time as people say it.

    Example:
        >>> in_words(42), in_words(600), in_words(5400)
        ('42 s', '10 min', '1.5 h')
    """
    if seconds < 100:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadline:
    """When a sweep has to stop."""

    at: float
    """On the clock of `time.monotonic`."""
    trial_s: float
    """Expected seconds of a trial; one that would end too late is not started."""

    def left(self) -> float:
        """Seconds, 0 when it is over."""
        return max(0.0, self.at - time.monotonic())

    def over(self) -> bool:
        """Whether no further trial can be started."""
        return self.left() < self.trial_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedSweep(SweepConfig):
    """A sweep that stops in time, with as many trials as are thought to fit."""

    deadline: Deadline


def trials_within(seconds: float, plan: "Plan", *, budget_s: float) -> int:
    """How many trials fit into `seconds`: floor((seconds - teacher - labels - start) / seconds a trial adds).

    A trial adds what it does beside others divided by the number of those, and the time it measures alone.

    Raises:
        ValueError: if it is none; the message says what one needs.
    """
    before = plan.teacher_s.expected + plan.labels_s.expected + START_S
    one = plan.trial_s.expected
    if seconds - before < one:
        needs = budget_s - seconds + before + one
        raise ValueError(
            f"--budget {in_words(budget_s)}: one trial needs about {in_words(needs)} (teacher"
            f" {in_words(plan.teacher_s.expected)}, soft labels {in_words(plan.labels_s.expected)}, trial"
            f" {in_words(one)}, probe and start {in_words(budget_s - seconds + START_S)})."
        )
    return int((seconds - before) / ((one - plan.alone_s) / plan.concurrency + plan.alone_s) + 1e-9)


def look_up(config: SweepConfig, dataset: DatasetRecord, points: Sequence[Mapping[str, Any]]) -> "Hits":
    """What is there already; `points` are the parameters of the first trials. Reads only."""
    from sweeps.plan import Hits
    from trainables.records import read_model
    from trainables.stages.soft_labels import VERSION
    from trainables.stages.student import student_key
    from trainables.stages.teacher import teacher_key
    from trainables.store import Store, stage_key

    store = Store(config.out / "store")
    base = [config.base.replace(**point) for point in points[: config.trials]] or [config.base]
    soft = any(candidate.student.soft_weight > 0 for candidate in base)
    views_needed = (config.base.student.student_epochs + config.base.prune.recovery_epochs) * soft
    trials = len(list((config.folder / "trials").glob("*/record.json")))
    folder = store.find(teacher_key(config.base, dataset))
    if folder is None:
        return Hits(trials=trials, views_needed=views_needed, first_students=len(points))
    record = read_model(folder)
    students = {student_key(candidate, dataset, record) for candidate in base}
    views = [
        stage_key(
            "soft_labels",
            version=VERSION,
            parents=[dataset.fingerprint, record.key],
            view=view,
            **vars(config.base.augment),
        )
        for view in range(views_needed)
    ]
    return Hits(
        trials=trials,
        teacher=True,
        views=sum(store.find(key) is not None for key in views),
        views_needed=views_needed,
        students=sum(store.find(key) is not None for key in students),
        first_students=len(students),
    )


def show(console: Console, plan: "Plan", config: SweepConfig, hits: "Hits") -> None:
    """Print a plan."""
    base = config.base
    where = f"{config.gpus} GPUs" if config.gpus else f"{config.cpus} CPU cores"
    of_memory = "CUDA memory" if config.gpus else "resident memory, Ray's own not counted"
    lines = {
        f"Plan of sweep {config.name}:": "nothing is trained but a few steps of a probe",
        "teacher": f"{base.teacher.teacher_model}, "
        + ("in the store" if hits.teacher else f"{base.teacher.teacher_epochs} epochs, {plan.teacher_s}"),
        "soft labels": f"{hits.views} of {hits.views_needed} views in the store; the rest {plan.labels_s}",
        "students": f"{base.student.student_model}, {hits.students} of the first {hits.first_students} in the store;"
        f" about {plan.students:.0f} to train",
        "one trial": f"{plan.trial_s}: {base.student.student_epochs} + {base.prune.recovery_epochs} epochs, export,"
        f" {in_words(plan.alone_s)} of measuring",
        "trials": f"{plan.trials} to run, {hits.trials} there; {plan.concurrency} at once on {where}",
        "in all": f"{plan.total_s.expected / 3600:.2f} h ({plan.total_s.low / 3600:.2f} to"
        f" {plan.total_s.high / 3600:.2f} h); trials that are stopped early make it less",
        "memory": f"{plan.memory_bytes / MB:.0f} MB a trial, {plan.memory_bytes * plan.concurrency / MB:.0f} MB at once"
        f" ({of_memory})",
        "disk": f"{plan.disk_bytes / MB:.0f} MB, of which {plan.trial_bytes / MB:.1f} MB a trial",
    }
    for name, text in lines.items():
        console.print(f"{name:<12} {text}", soft_wrap=True, markup=False)


def add_cost_flags(parser: argparse.ArgumentParser) -> None:
    """`--plan` and `--budget`, which are no settings of a sweep; the command's description explains them."""
    parser.add_argument("--plan", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=duration, metavar="TIME", help=argparse.SUPPRESS)


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
    group.add_argument("--cpus", type=int, metavar="N", help=f"{docs['cpus']} (default: all, {_cores()})")
    add_flags(group, preset, leave_out=("name", "cpus", "base", "space", "rates", "limits", *leave_out))
    searched = parser.add_argument_group("search space", "each takes one value, a list such as 1,2,4, or LOW:HIGH")
    for name in space.SEARCHED:
        shown = space.show(preset.space[name]) if name in preset.space else preset.base.flat()[name]
        searched.add_argument(flag_name(name), metavar="SPACE", help=f"{_SEARCHED_DOCS[name]} (default: {shown})")
    if limits:
        add_flags(parser.add_argument_group("limits", inspect.getdoc(Limits)), preset.limits)
    add_flags(parser.add_argument_group("score", inspect.getdoc(ExchangeRates)), preset.rates)
    add_config_flags(parser, preset.base, leave_out=space.SEARCHED)


def take_spaces(flags: argparse.Namespace) -> dict[str, str]:
    """What was asked of the parameters in `SEARCHED`; taken out of `flags`, where they are no settings."""
    texts = {name: getattr(flags, name) for name in space.SEARCHED if getattr(flags, name) is not None}
    for name in space.SEARCHED:
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
        **{"cpus": _cores()} | given(flags, SweepConfig),
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


def with_flags(message: str) -> str:
    """The message with `alpha=2.0` said as `--alpha 2.0`: what the person typed."""
    names = [f.name for f in dataclasses.fields(SweepConfig)] + list(SweepConfig(name="x").base.flat())
    return said_as_flags(message, [*names, *(f.name for p in (ExchangeRates, Limits) for f in dataclasses.fields(p))])


def run(config: SweepConfig, dataset: DatasetRecord, parser: OneLineParser, console: Console) -> int:
    """Run a sweep; returns the exit code."""
    from sweeps.launch import Interrupted, run_sweep  # Ray takes a second; bad flags need not wait for it
    from sweeps.sweep_folder import InputError

    try:
        return FAILED if run_sweep(config, dataset, console) else 0
    except InputError as error:
        parser.error(with_flags(str(error)))
    except (Interrupted, KeyboardInterrupt):
        console.print(f"Stopped. What is finished is in {config.folder}; the same command goes on from there.")
        return 0 if isinstance(config, TimedSweep) and config.deadline.over() else INTERRUPTED


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
