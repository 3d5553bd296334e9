"""The commands of `python -m analysis`: each takes its parsed flags, prints, and returns the exit code."""

import argparse
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from analysis import disk
from analysis.findings import selecting
from analysis.findings.front import choose, competing, front_hypervolume, front_members, of_device, split, with_teacher
from analysis.findings.importance import importance as importances
from analysis.findings.importance import importance_table
from analysis.pages import front_table
from analysis.reading.facts import row_of
from analysis.reading.runs import Runs, aliased_run, read_runs
from trainables.layout import (
    DATABASE,
    FRONT,
    ONNX_FILE,
    REPORT,
    SWEEPS,
    TOGETHER,
    sweep_folder,
    trial_folder,
)

ALIASES = ("most_accurate", "balanced", "fastest", "smallest")


def front(options: argparse.Namespace) -> int:
    """Print the front of each data set and device, then write its files."""
    runs, code = _runs(options), 1
    console = _console()
    for name, part in split(runs).items():
        folder = options.to or _folder(options, part) / FRONT
        folder = folder / _file_name(name) if name else folder
        if name:
            console.print(f"[bold]{name}[/]")
        code = min(code, _show_front(console, part))
        sys.stdout.flush()
        # The table is there at once; what draws takes a second to import alone.
        from analysis.findings.controls import controls, print_controls, write_controls
        from analysis.pages.front_files import write_page, write_pictures, write_tables

        arms = controls(part.frame)
        paths = [*write_tables(part, folder), *write_page(part, folder), *write_controls(arms, folder)]
        print_controls(console, arms)
        for path in [*paths, *write_pictures(part, folder)]:
            print(shown(path))
    return code


def _show_front(console: Console, runs: Runs) -> int:
    front = front_members(runs)
    if front.empty:
        counts = ", ".join(f"{n} {status}" for status, n in runs.frame["status"].value_counts().items())
        console.print(f"Sweep {runs.name} has no finished candidate yet ({counts or 'no trials'}).", markup=False)
        return 1
    console.print(f"Sweep {runs.name}: {len(front)} of {len(runs.frame)} runs are on the front.", markup=False)
    variants = choose(front, runs.sweep["teacher"])
    console.print(front_table.front_table(with_teacher(runs, front), variants=variants))
    candidates = competing(runs)
    others = int((candidates["may_be_optimal"] & ~candidates["pareto"]).sum())
    if others:
        console.print(
            f"{others} more may be as good: their intervals do not rule it out (may_be_optimal in candidates.csv)."
        )
    reference = runs.sweep["reference_point"]
    corner = ", ".join(f"{axis} {value:g}" for axis, value in reference.items())
    console.print(f"hypervolume {front_hypervolume(runs):.2f} (reference point: {corner})", markup=False)
    return 0


def select(options: argparse.Namespace) -> int:
    """Print the file that fits, the runner-up, or the nearest miss and what it would take."""
    goal = selecting.Goal(
        max_latency_ms=options.max_latency_ms, max_size_mb=options.max_size_mb, min_accuracy=options.min_accuracy
    )
    runs = _one_device(_runs(options))
    candidates = competing(runs)
    if candidates.empty:
        print(f"Sweep {runs.name} has no finished candidate yet.")
        return 1
    choice = selecting.select(candidates, goal, runs.sweep["directions"])
    if choice.best is None:
        _say_nothing_fits(runs, candidates, goal, choice)
        return 1
    best = row_of(candidates, choice.best)
    print(_model_file(options, runs, best))
    print(f"{selecting.in_words(best)}   the most accurate of {choice.fitting} that fit")
    if choice.runner_up is not None:
        other = row_of(candidates, choice.runner_up)
        print(f"runner-up {selecting.in_words(other)}   {selecting.differences(other, best)}")
    name = shlex.quote(f"{best['sweep']}@{int(best['trial_number'])}")
    place = (
        f" --tracking-uri {shlex.quote(options.tracking_uri)}"
        if options.tracking_uri
        else f" --out {shlex.quote(str(options.out))}"
    )
    print(f"ship it: python -m analysis export {name} --to DIR{place}")
    return 0


def _say_nothing_fits(runs: Runs, candidates: pd.DataFrame, goal: selecting.Goal, choice: selecting.Choice) -> None:
    limits = ", ".join(f"{_flag(name)} {value:g}" for name, value in goal.given().items())
    print(f"Nothing fits {limits} among {len(candidates)} finished candidates of sweep {runs.name}.")
    near = candidates.loc[[choice.nearest]]
    excess = selecting.over(near, goal).iloc[0]
    over = ", ".join(f"{_flag(str(name))} missed by {100 * value:.1f} %" for name, value in excess.items() if value > 0)
    print(f"nearest miss {selecting.in_words(near.iloc[0])}   {over}")
    for name, (value, run_id) in choice.would_take.items():
        there = selecting.in_words(row_of(candidates, run_id))
        print(f"it would take {_flag(name)} {_admitting(name, value)}, the rest kept: {there}")
    if not choice.would_take:
        print("no single limit is in the way: two or more must give.")


def export(options: argparse.Namespace) -> int:
    """Write the folder to ship."""
    from analysis.pages.model_card import model_card
    from analysis.shipping import ship

    sweep, at, which = options.which.rpartition("@")
    if not (at and sweep and which):
        raise ValueError(f"{options.which!r} is no NAME@WHICH, such as quick-c55026@balanced.")
    uri = _tracking_uri(options)
    runs = read_runs(uri, sweep)
    run_id = _meant(runs, which, uri)
    shipped = ship(uri, run_id, options.to, card=model_card(runs, run_id, which))
    for path in shipped.files:
        print(shown(path))
    print(f"{shipped.num_classes} classes, images of {shipped.image_size} x {shipped.image_size} pixels")
    print(f"try: python {shlex.quote(shown(options.to / 'predict.py'))} IMAGE")
    return 0


def _meant(runs: Runs, which: str, uri: str) -> str:
    """The run that the word after the @ stands for."""
    frame = runs.frame
    if which == "teacher":
        found = frame.index[frame["stage"] == "teacher"]
    elif which.isdecimal():
        found = frame.index[(frame["trial_number"] == int(which)) & (frame["status"] == "finished")]
    else:
        registered = aliased_run(uri, runs.name, which)
        if registered in frame.index:  # not of another sweep that has the name, too
            return str(registered)
        front = front_members(_one_device(runs))
        if front.empty or which not in ALIASES:
            known = ", ".join((*ALIASES, "teacher", "a trial's number"))
            raise ValueError(f"{runs.name}@{which}: no such alias in MLflow's registry; there are {known}.")
        return choose(front, runs.sweep["teacher"])[which]
    if found.empty:
        raise ValueError(
            f"{runs.name}@{which}: no such finished trial; `python -m analysis --name {runs.name}` lists them."
        )
    return str(found[0])


def report(options: argparse.Namespace) -> int:
    """Write report.html and report.md."""
    from analysis.pages.report import write_report

    runs = _one_device(_runs(options))
    if front_members(runs).empty:
        print(f"Sweep {runs.name} has no finished candidate yet.")
        return 1
    folder = options.to or _folder(options, runs) / REPORT
    for path in write_report(runs, folder):
        print(shown(path))
    return 0


def importance(options: argparse.Namespace) -> int:
    """Print which parameter moved what."""
    runs = _one_device(_runs(options))
    candidates = competing(runs)
    table = importances(candidates, runs.params, evaluator=options.evaluator)
    print(f"Sweep {runs.name}")
    _console().print(importance_table(table, trials=len(candidates), evaluator=options.evaluator))
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print two sweeps side by side."""
    from analysis.findings import comparing
    from analysis.plots import compared

    uri = _tracking_uri(options)
    first, second = (_one_device(read_runs(uri, name)) for name in options.sweeps)
    comparison = comparing.compare(first, second)
    width = max(len(side.name) for side in comparison.sides)
    for side in comparison.sides:
        interval = f"its trials resampled {side.low:.2f} to {side.high:.2f} (95 %)"
        members = f"{side.front} of {side.candidates} on the front"
        print(f"{side.name:<{width}}  hypervolume {side.hypervolume:.2f}  {interval}  {members}")
    print(comparing.verdict(comparison))
    for note in comparison.notes:
        print(f"note: {note}")
    picture = options.out / "compare" / f"{_file_name(first.name)}-{_file_name(second.name)}.png"
    if options.out.is_dir():
        picture.parent.mkdir(exist_ok=True)
        for path in compared.attainment_png(first, second, picture):
            print(shown(path))
    return 0


def du(options: argparse.Namespace) -> int:
    """Print what the folder takes on disk."""
    rows = disk.usage(options.out)
    _console().print(disk.usage_table(rows))
    room = f"python -m trainables.store gc --out {shlex.quote(str(options.out))}"
    print(f"in all {disk.total(options.out) / 1e6:,.1f} MB; `{room}` makes room")
    return 0


def _runs(options: argparse.Namespace) -> Runs:
    runs = read_runs(_tracking_uri(options), options.name)
    return of_device(runs, options.device) if options.device else runs


def _folder(options: argparse.Namespace, runs: Runs) -> Path:
    """The sweep's own; several sweeps taken together have one beside `sweeps/`, where nothing is taken for a sweep."""
    out: Path = options.out
    return out / (SWEEPS if len(runs.sweeps) == 1 else TOGETHER) / _file_name(runs.name)


def _tracking_uri(options: argparse.Namespace) -> str:
    if options.tracking_uri is None and not (options.out / DATABASE).is_file():
        raise ValueError(f"--out {options.out} has no {DATABASE}; name the folder of a sweep or give --tracking-uri.")
    return options.tracking_uri or f"sqlite:///{options.out / DATABASE}"


def _one_device(runs: Runs) -> Runs:
    groups = split(runs)
    if len(groups) > 1:
        raise ValueError(f"Sweep {runs.name} has several fronts ({'; '.join(groups)}); choose one with --device.")
    return runs


def _model_file(options: argparse.Namespace, runs: Runs, row: "pd.Series[Any]") -> str:
    sweep = sweep_folder(options.out, str(row["sweep"]))
    local = trial_folder(sweep, int(row["trial_number"])) / ONNX_FILE
    return str(local) if local.is_file() else f"runs:/{row.name}/{ONNX_FILE}"


def _admitting(name: str, value: float) -> str:
    """Three digits that still admit the value: up for an upper limit, down for a lower one."""
    if value <= 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    digits = math.floor(value / step + 1e-9) if name == "min_accuracy" else math.ceil(value / step - 1e-9)
    return f"{digits * step:.6g}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def shown(path: Path) -> str:
    """A path as short as it can be typed here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in text)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)
