"""Flags of every sweep command, and the `SweepConfig` that they come to."""

import argparse
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution

from sweeps.cluster.address import cluster_settings
from sweeps.display.console import Screen
from sweeps.display.durations import duration
from sweeps.search import space
from sweeps.search.config import OBJECTIVES, PARTS, SAMPLERS, STOPPERS, Search, Selection, SweepConfig
from sweeps.search.devices import Devices
from sweeps.search.presets import FILES, augment_for, default_name
from trainables.config.candidate import KD_LOSSES, CandidateConfig
from trainables.config.flags import (
    OneLineParser,
    add_completion_flag,
    add_config_flags,
    add_flags,
    add_help_flags,
    config_from_flags,
    field_docs,
    flag_name,
    set_fields,
)
from trainables.config.flags import with_flags as said_as_flags
from trainables.config.limits import Limits
from trainables.config.score import ExchangeRates
from trainables.files import digest_of
from trainables.stages.models.devices.processor import usable_cores

# Help texts of the search space: `CandidateConfig` documents a single value, a sweep also takes lists and ranges.
_SEARCHED_DOCS = {
    "student_model": "Network that is cut: teacher (its trained weights), a model name, or package.module:function; a"
    " list such as teacher,resnet20 searches among them",
    "kd_loss": f"Soft, teacher term, of {', '.join(KD_LOSSES)}; a list such as kd,dkd,dist searches among them",
    "alpha": "Weight of the soft, teacher term, 0 to 1; the labels get 1 - alpha",
    "temperature": "Softens teacher and student logits, > 0; mse does without",
    "dkd_beta": "Weight of the classes that are not the target, >= 0; asked for where kd_loss is dkd",
    "learning_rate": "Peak of the student's schedule (AdamW)",
    "pruning_method": "structured (removes channels), or zeroes weights: l1_unstructured, l1_global, nm_2_4",
    "pruning_ratio": "Fraction removed, in [0, 1)",
    "pruning_criterion": "What structured keeps: magnitude, lamp, taylor or bn_scale",
    "pruning_scope": "Where structured removes: layer (each alike), global (worst of all) or sensitivity (least harm)",
    "precision": "Of the ONNX file: fp32, fp16, int8_ptq or int8_qat; a list searches among them",
}


# What `--help` names; `--help-all` names the others, too.
USUAL = (
    *("--help", "--help-all", "--preset", "--base", "--config", "--plan", "--budget", "--name", "--out"),
    *("--dataset", "--image-size", "--normalize", "--student-model", "--pruning-ratio", "--precision"),
    *("--trials", "--champions"),
    *("--teacher-model", "--teacher-weights", "--teacher-epochs", "--max-latency-ms", "--max-size-mb", "--max-drop"),
    *("--gpus", "--gpus-per-trial", "--cpus", "--address", "--storage", "--tracking-uri", "--seeds"),
)
SEARCH_WORDS = {"objective": OBJECTIVES, "sampler": SAMPLERS, "stopper": tuple(STOPPERS)}


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that keeps the line breaks of descriptions, wraps long lines and drops the backticks of docstrings."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for line in text.splitlines():
            lines += [line] if len(indent + line) <= width else textwrap.wrap(line, width - len(indent))
        return "".join(f"{indent}{line}\n" for line in lines)

    def _expand_help(self, action: argparse.Action) -> str:
        return super()._expand_help(action).replace("`", "")


def add_cost_flags(group: "argparse._ArgumentGroup") -> None:
    """Add `--plan` and `--budget`, which are not settings of a sweep."""
    text = "Say what the sweep would cost in time, memory and disk, after a probe of a few steps; train nothing"
    group.add_argument("--plan", action="store_true", help=f"{text} (default: off)")
    text = (
        "Run as many trials as fit into 6h, 90m, 1h30m or 45s, with more or fewer epochs each unless they are given;"
        " the same command goes on with those it cuts off, and after a crash has the rest of that time"
    )
    group.add_argument("--budget", type=duration, metavar="TIME", help=f"{text} (default: none)")
    text = "Run the failed trials of a sweep again, once what made them fail is mended"
    group.add_argument("--retry-failed", action="store_true", help=f"{text} (default: off)")


def add_output_flags(group: "argparse._ArgumentGroup") -> None:
    """Add `--quiet` and `--json`, which choose the format of standard output, and `--help`."""
    either = group.add_mutually_exclusive_group()
    either.add_argument("--quiet", action="store_true", help="Print the result alone (default: off)")
    text = "Print one JSON object a line for every event: started, trial, finished; what is for people goes to stderr"
    either.add_argument("--json", action="store_true", help=f"{text} (default: off)")
    add_completion_flag(group)
    add_help_flags(group)


def screen_of(flags: argparse.Namespace) -> Screen:
    """The screen that the flags of `add_output_flags` ask for."""
    return Screen("json" if flags.json else "quiet" if flags.quiet else "people")


def add_sweep_flags(
    parser: argparse.ArgumentParser, preset: SweepConfig, *, leave_out: Collection[str] = (), limits: bool = True
) -> None:
    """Add one flag for every setting of a sweep, with the preset's values as the defaults shown.

    Args:
        leave_out: fields of `SweepConfig` that the command sets itself.
        limits: whether to add the flags of limits.
    """
    if isinstance(parser, OneLineParser):
        parser.usual = USUAL
    searched = parser.add_argument_group("search space", "each takes one value, a list such as 1,2,4, or LOW:HIGH")
    for name in (*space.SEARCHED, *space.OPTIONAL):
        shown = (
            space.show(preset.search.space[name]) if name in preset.search.space else preset.search.base.flat()[name]
        )
        searched.add_argument(flag_name(name), metavar="SPACE", help=f"{_SEARCHED_DOCS[name]} (default: {shown})")
    if limits:
        add_flags(parser.add_argument_group("limits", inspect.getdoc(Limits)), preset.limits)
    add_config_flags(parser, preset.search.base, leave_out=(*space.SEARCHED, *space.OPTIONAL))
    group = parser.add_argument_group("search", inspect.getdoc(Search))
    add_flags(group, preset.search, leave_out=("base", "space", *leave_out), words=SEARCH_WORDS)
    add_flags(parser.add_argument_group("score", inspect.getdoc(ExchangeRates)), preset.rates)
    add_flags(parser.add_argument_group("proof", inspect.getdoc(Selection)), preset.selection, leave_out=leave_out)
    group = parser.add_argument_group("devices", inspect.getdoc(Devices))
    _add_device_flags(group, preset.devices, ("address", *leave_out))
    group = parser.add_argument_group("files and cluster", "Where files go, and what a cluster needs.")
    text = f"{field_docs(SweepConfig)['name'].rstrip('.')} (default: preset or data set, and a digest of the settings)"
    group.add_argument("--name", help=text)
    add_flags(group, preset.places)
    in_group = {name for name in vars(preset.devices) if name != "address"}
    add_flags(group, preset.devices, leave_out=in_group)


def _add_device_flags(group: "argparse._ArgumentGroup", devices: Devices, leave_out: Collection[str]) -> None:
    # By hand: the default of `cpus` is this machine's core count, and the shares take a number or `auto`.
    docs, shares = field_docs(Devices), ("cpus_per_trial", "gpus_per_trial")
    add_flags(group, devices, leave_out=("cpus", *shares, *leave_out))
    group.add_argument(
        "--cpus", type=int, metavar="N", help=f"{docs['cpus'].rstrip('.')} (default: all, {len(usable_cores())})"
    )
    for name, number in zip(shares, (int, float), strict=True):
        if name not in leave_out:
            text = f"{docs[name].rstrip('.')} (default: {getattr(devices, name)})"
            group.add_argument(flag_name(name), type=_or_text(number), metavar="X", help=text)


def _or_text(number: type[int] | type[float]) -> Callable[[str], int | float | str]:
    """A parser that reads a number and passes other text on; `Devices` then accepts only `auto`."""

    def read(text: str) -> int | float | str:
        try:
            return number(text)
        except ValueError:
            return text

    return read


def take_spaces(flags: argparse.Namespace) -> dict[str, str]:
    """Remove the searched parameters from `flags`, where they are not settings, and return their texts."""
    names = (*space.SEARCHED, *space.OPTIONAL)
    texts = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    for name in names:
        setattr(flags, name, None)
    return texts


def config_of(flags: argparse.Namespace, preset: SweepConfig, searched: Mapping[str, BaseDistribution]) -> SweepConfig:
    """The preset, changed by the flags, over the given space; call `take_spaces` first.

    Raises:
        ValueError: if a value is out of its range.
    """
    base = preset.search.base
    given = flags.teacher_weights  # a digest stands for the file: in another place it is still the same teacher
    typed = argparse.Namespace(**vars(flags) | {"teacher_weights": given and digest_of(Path(given), "teacher_weights")})
    if flags.dataset not in (None, base.data.dataset) or flags.image_size is not None:
        # The preset's augmentation suits its own images only; flags of augmentation still override this one.
        base = dataclasses.replace(base, augment=augment_for(flags.dataset or base.data.dataset, flags.image_size))
    changes: dict[str, Any] = {"cpus": len(usable_cores())}
    for part in PARTS.values():
        changes |= set_fields(flags, part)
    changes |= {"name": flags.name} if flags.name else {}
    changes |= cluster_settings(flags.address, gpus=flags.gpus, cpus=flags.cpus)
    return preset.replace(**changes | {"base": config_from_flags(base, typed), "space": searched})


def searching(flags: argparse.Namespace, preset: SweepConfig, *, kind: str) -> SweepConfig:
    """The sweep that flags ask for over a preset: parameters with several values are searched.

    Args:
        kind: begins the sweep's name, unless the flags name it.

    Raises:
        ValueError: if a value is out of its range.
    """
    texts = take_spaces(flags)
    if "precision" in preset.search.space and flags.latency_runtime in FILES:
        texts.setdefault("precision", FILES[flags.latency_runtime])
    searched, fixed = space.split(texts)
    preset = preset.replace(base=preset.search.base.replace(**fixed))
    varied = {name: values for name, values in preset.search.space.items() if name not in fixed}
    config = config_of(flags, preset, varied | searched)
    return config if flags.name else config.replace(name=default_name(kind, config.identity()))


def with_flags(message: str) -> str:
    """The message with `alpha=2.0` rewritten as `--alpha 2.0`, as it was typed."""
    names = ["name", *(field.name for part in PARTS.values() for field in dataclasses.fields(part))]
    return said_as_flags(message, [*names, *CandidateConfig().flat()])
