"""The commands of `python -m analysis`: each takes plain values, prints its result, and returns the exit code."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from analysis.findings import selecting
from analysis.findings.controls import controls
from analysis.findings.front import choose, competing, front_hypervolume, front_members, of_device, split, with_teacher
from analysis.findings.importance import importance as importances
from analysis.pages import terminal
from analysis.reading import disk
from analysis.reading.doors import Terminal, say
from analysis.reading.rows import row_of
from analysis.reading.runs import Runs, aliased_run, read_runs
from analysis.reading.wording import MB, differences, in_words
from trainables.config.flags import flag_name
from trainables.layout import (
    DATABASE,
    FRONT,
    ONNX_FILE,
    REPORT,
    SWEEPS,
    TOGETHER,
    database_uri,
    sweep_folder,
    trial_folder,
)
from trainables.records.trial import read_delivered

DONE, NOTHING_FITS = 0, 1  # exit codes; the second also means that nothing has finished
ALIASES = ("most_accurate", "balanced", "fastest", "smallest")


def front(*, out: Path, tracking_uri: str | None, name: str | None, device: str | None, to: Path | None) -> int:
    """Print the front of each data set and device, then write its files."""
    runs, code = _read(out, tracking_uri, name, device), NOTHING_FITS
    console = _console()
    for group, part in split(runs).items():
        folder = to or _folder(out, part) / FRONT
        folder = folder / _file_name(group) if group else folder
        if group:
            console.print(group, style="bold")
        code = min(code, _show_front(console, part))  # done, if there is one front
        sys.stdout.flush()
        # Plotting takes a second to import: the table is printed before.
        from analysis.pages.front_files import write_controls, write_page, write_pictures, write_tables

        arms = controls(part.frame)
        paths = [*write_tables(part, folder), *write_page(part, folder), *write_controls(arms, folder)]
        terminal.print_controls(console, arms)
        for path in [*paths, *write_pictures(part, folder)]:
            say(shown(path))
    return code


def _show_front(console: Console, runs: Runs) -> int:
    front = front_members(runs)
    if front.empty:
        counts = ", ".join(f"{n} {status}" for status, n in runs.frame["status"].value_counts().items())
        console.print(f"Sweep {runs.name} has no finished candidate yet ({counts or 'no trials'}).")
        return NOTHING_FITS
    console.print(f"Sweep {runs.name}: {len(front)} of {len(runs.frame)} runs are on the front.")
    variants = choose(front, runs.sweep["teacher"])
    console.print(terminal.front_table(with_teacher(runs, front), variants=variants))
    candidates = competing(runs)
    others = int((candidates["may_be_optimal"] & ~candidates["pareto"]).sum())
    if others:
        console.print(
            f"{others} more may be as good: their intervals do not rule it out (may_be_optimal in candidates.csv)."
        )
    reference = runs.sweep["reference_point"]
    corner = ", ".join(f"{axis} {value:g}" for axis, value in reference.items())
    console.print(f"hypervolume {front_hypervolume(runs):.2f} (reference point: {corner})")
    return DONE


def select(
    *,
    out: Path,
    tracking_uri: str | None,
    name: str | None,
    device: str | None,
    max_latency_ms: float | None,
    max_size_mb: float | None,
    min_accuracy: float | None,
) -> int:
    """Print the file that fits and a runner-up, or the nearest miss and what it would take."""
    goal = selecting.Goal(max_latency_ms=max_latency_ms, max_size_mb=max_size_mb, min_accuracy=min_accuracy)
    runs = _one_front(_read(out, tracking_uri, name, device))
    candidates = competing(runs)
    if candidates.empty:
        return _print_no_candidate(runs)
    choice = selecting.select(candidates, goal, runs.sweep["directions"])
    if choice.best is None:
        _print_nearest_miss(runs, candidates, goal, choice)
        return NOTHING_FITS
    best = row_of(candidates, choice.best)
    say(_model_file(out, best))
    say(f"{in_words(best)}   the most accurate of {choice.fitting} that fit")
    if choice.runner_up is not None:
        other = row_of(candidates, choice.runner_up)
        say(f"runner-up {in_words(other)}   {differences(other, best)}")
    candidate = shlex.quote(f"{best['sweep']}@{int(best['trial_number'])}")
    place = f"--tracking-uri {shlex.quote(tracking_uri)}" if tracking_uri else f"--out {shlex.quote(str(out))}"
    say(f"ship it: python -m analysis export {candidate} --to DIR {place}")
    return DONE


def _print_nearest_miss(runs: Runs, candidates: pd.DataFrame, goal: selecting.Goal, choice: selecting.Choice) -> None:
    limits = ", ".join(f"{flag_name(name)} {value:g}" for name, value in goal.given().items())
    say(f"Nothing fits {limits} among {len(candidates)} finished candidates of sweep {runs.name}.")
    near = candidates.loc[[choice.nearest]]
    excess = selecting.excess_over(near, goal).iloc[0]
    missed = [f"{flag_name(str(name))} missed by {100 * value:.1f} %" for name, value in excess.items() if value > 0]
    say(f"nearest miss {in_words(near.iloc[0])}   {', '.join(missed)}")
    for name, (value, run_id) in choice.would_take.items():
        there = in_words(row_of(candidates, run_id))
        say(f"it would take {flag_name(name)} {selecting.rounded_to_admit(name, value)}, the rest kept: {there}")
    if not choice.would_take:
        say("no single limit is in the way: two or more must give.")


def export(*, out: Path, tracking_uri: str | None, which: str, to: Path) -> int:
    """Write the folder to ship."""
    from analysis.pages.model_card import model_card
    from analysis.shipping import ship

    name, at, variant = which.rpartition("@")
    if not (at and name and variant):
        raise ValueError(f"{which!r} is no NAME@WHICH, such as quick-c55026@balanced.")
    uri = _store_of(out, tracking_uri)
    runs = read_runs(uri, name)
    run_id = _run_of(runs, variant, uri)
    shipped = ship(uri, run_id, to, card=model_card(runs, run_id, variant))
    for path in shipped.files:
        say(shown(path))
    say(f"{shipped.num_classes} classes, images of {shipped.image_size} x {shipped.image_size} pixels")
    say(f"try: python {shlex.quote(shown(to / 'predict.py'))} IMAGE")
    return DONE


def _run_of(runs: Runs, variant: str, uri: str) -> str:
    """The id of the run that the word after the @ means."""
    frame = runs.frame
    if variant == "teacher":
        found = frame.index[frame["stage"] == "teacher"]
    elif variant.isdecimal():
        found = frame.index[(frame["trial_number"] == int(variant)) & (frame["status"] == "finished")]
    else:
        # An alias that a person moved in the registry wins over what the front would give.
        registered = aliased_run(uri, runs.name, variant)
        if registered in frame.index:  # another sweep may have the same name
            return str(registered)
        front = front_members(_one_front(runs))
        if front.empty or variant not in ALIASES:
            known = ", ".join((*ALIASES, "teacher", "a trial's number"))
            raise ValueError(f"{runs.name}@{variant}: no such alias in MLflow's registry; there are {known}.")
        return choose(front, runs.sweep["teacher"])[variant]
    if found.empty:
        raise ValueError(
            f"{runs.name}@{variant}: no such finished trial; `python -m analysis --name {runs.name}` lists them."
        )
    return str(found[0])


def serve(*, out: Path, tracking_uri: str | None, name: str | None, device: str | None, port: int | None) -> int:
    """Serve the front as a page of its own until Ctrl-C."""
    from analysis.serving.server import serve_page

    def read(known: str | None) -> Runs:
        return _one_front(_read(out, tracking_uri, known or name, device))

    serve_page(read, _store_of(out, tracking_uri), out=out, port=port)
    return DONE


def report(*, out: Path, tracking_uri: str | None, name: str | None, device: str | None, to: Path | None) -> int:
    """Write report.html and report.md."""
    from analysis.pages.report import write_report

    runs = _one_front(_read(out, tracking_uri, name, device))
    if front_members(runs).empty:
        return _print_no_candidate(runs)
    for path in write_report(runs, to or _folder(out, runs) / REPORT):
        say(shown(path))
    return DONE


def importance(*, out: Path, tracking_uri: str | None, name: str | None, device: str | None, evaluator: str) -> int:
    """Print which parameter moved which metric."""
    runs = _one_front(_read(out, tracking_uri, name, device))
    candidates = competing(runs)
    table = importances(candidates, runs.params, evaluator=evaluator)
    say(f"Sweep {runs.name}")
    _console().print(terminal.importance_table(table, trials=len(candidates), evaluator=evaluator))
    return DONE


def compare(*, out: Path, tracking_uri: str | None, sweeps: Sequence[str]) -> int:
    """Print two sweeps side by side."""
    from analysis.findings import comparing
    from analysis.plots import compared

    uri = _store_of(out, tracking_uri)
    first, second = (_one_front(read_runs(uri, name)) for name in sweeps)
    comparison = comparing.compare(first, second)
    width = max(len(side.name) for side in comparison.sides)
    for side in comparison.sides:
        interval = f"its trials resampled {side.low:.2f} to {side.high:.2f} (95 %)"
        members = f"{side.front} of {side.candidates} on the front"
        say(f"{side.name:<{width}}  hypervolume {side.hypervolume:.2f}  {interval}  {members}")
    say(comparing.verdict(comparison))
    for note in comparison.notes:
        say(f"note: {note}")
    picture = out / "compare" / f"{_file_name(first.name)}-{_file_name(second.name)}.png"
    if out.is_dir():  # with --tracking-uri there may be no folder of sweeps on this machine
        picture.parent.mkdir(exist_ok=True)
        for path in compared.attainment_png(first, second, picture):
            say(shown(path))
    return DONE


def du(*, out: Path) -> int:
    """Print what the folder takes on disk."""
    rows = disk.usage(out)
    _console().print(terminal.usage_table(rows))
    room = f"python -m trainables.store gc --out {shlex.quote(str(out))}"
    say(f"in all {disk.total(out) / MB:,.1f} MB; `{room}` makes room")
    return DONE


def _read(out: Path, tracking_uri: str | None, name: str | None, device: str | None) -> Runs:
    runs = read_runs(_store_of(out, tracking_uri), name)
    return of_device(runs, device) if device else runs


def _store_of(out: Path, tracking_uri: str | None) -> str:
    """The tracking URI given, else that of the database in `out`."""
    if tracking_uri is None and not (out / DATABASE).is_file():
        raise ValueError(f"out={out} has no {DATABASE}; name the folder of a sweep or give --tracking-uri.")
    return tracking_uri or database_uri(out)


def _one_front(runs: Runs) -> Runs:
    """The runs, if they compete for one front."""
    groups = split(runs)
    if len(groups) > 1:
        raise ValueError(f"Sweep {runs.name} has several fronts ({'; '.join(groups)}); choose one with --device.")
    return runs


def _print_no_candidate(runs: Runs) -> int:
    say(f"Sweep {runs.name} has no finished candidate yet.")
    return NOTHING_FITS


def _folder(out: Path, runs: Runs) -> Path:
    """The sweep's own folder; for several sweeps, one outside `sweeps/`, where it is not taken for a sweep."""
    return out / (SWEEPS if len(runs.sweeps) == 1 else TOGETHER) / _file_name(runs.name)


def _model_file(out: Path, row: "pd.Series[Any]") -> str:
    """The path of a candidate's file if this machine has that run's, else its address in MLflow."""
    folder = trial_folder(sweep_folder(out, str(row["sweep"])), int(row["trial_number"]))
    # by the run's id: the folder may hold another sweep of that name, or a later trial of that number
    here = read_delivered(folder).get("run_id") == row.name and (folder / ONNX_FILE).is_file()
    return str(folder / ONNX_FILE) if here else f"runs:/{row.name}/{ONNX_FILE}"


def shown(path: Path) -> str:
    """A path relative to the working folder, if it is below it; else as it is."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in text)


def _console() -> Terminal:
    # In a file there is no width to ask for, and 80 columns would wrap the table's caption.
    return Terminal(width=None if sys.stdout.isatty() else 120)
