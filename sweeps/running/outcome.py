"""What a sweep reports: its headline, and at the end its front in MLflow, on disk and on the screen."""

import math
import shlex
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from analysis.findings.controls import controls
from analysis.findings.front import choose, front_members, hypervolume_curve, retrained, with_teacher
from analysis.findings.reuse import reuse
from analysis.pages.front_files import write_controls, write_front
from analysis.pages.mlflow_view import addresses, view_tags
from analysis.pages.report import summary_of, write_report
from analysis.pages.terminal import front_table, print_controls
from analysis.reading.facts import stood_still
from analysis.reading.runs import Runs, read_runs
from analysis.reading.wording import in_words
from sweeps.display.console import Screen
from sweeps.running.run import Run
from sweeps.search.config import SweepConfig
from sweeps.search.folder import InputError, check_identity
from sweeps.search.space import values_of
from trainables.config.candidate import TEACHER_ITSELF
from trainables.layout import (
    ARTIFACTS,
    FRONT,
    FRONT_PAGE,
    ONNX_FILE,
    REPORT,
    SWEEP_JSON,
    TEACHER,
    database_uri,
    trial_folder,
)
from trainables.records.latency import doubt
from trainables.records.stages import DatasetRecord
from trainables.records.trial import TrialRecord
from trainables.tracking.deliveries import deliver_all, note_where, outbox, scores_of
from trainables.tracking.tracker import DeletedError, Tracker, TrackingError


def headline(config: SweepConfig) -> str:
    """What runs where, on one line."""
    base = config.search.base
    students = values_of(config.search.space, base, "student_model")
    named = " or ".join("itself" if name == TEACHER_ITSELF else name for name in students)
    return (
        f"Sweep {config.name}: {base.teacher.teacher_model} -> {named} on {base.data.dataset},"
        f" {config.devices.concurrency} at once on {config.devices}"
    )


def teacher_line(config: SweepConfig, teacher: TrialRecord) -> str:
    """The teacher on one line."""
    metrics = teacher.metrics
    said = f" ({why})" if (why := doubt(teacher.tags)) else ""
    return (
        f"teacher {config.search.base.teacher.teacher_model}: val {100 * metrics['val_accuracy']:.2f} %"
        f"  {metrics['latency_p50_ms']:.3f} ms{said}"
        f"  {metrics['size_bytes'] / 1e6:.2f} MB"
    )


def open_tracker(uri: str, config: SweepConfig, dataset: DatasetRecord, sweep_id: str) -> Tracker:
    """Open the sweep's run in MLflow.

    Raises:
        InputError: if that MLflow store cannot be used.
    """
    experiment, artifacts = dataset.name.replace(":", "-"), config.places.out / ARTIFACTS
    # Written before the first connection: `analysis sync` delivers from it if MLflow stays away.
    note_where(config.folder, uri, experiment=experiment, sweep=config.name, sweep_id=sweep_id)
    try:
        return Tracker(uri, experiment=experiment, sweep=config.name, sweep_id=sweep_id, artifacts=artifacts)
    except DeletedError as error:
        raise InputError(f"--tracking-uri {uri}: {error}.") from error
    except TrackingError as error:
        fix = "start that server with --allowed-hosts" if " 403 " in str(error) else "name another store"
        raise InputError(f"--tracking-uri {uri}: {error}; {fix}, or leave the flag out.") from error


def tracking_uri(config: SweepConfig) -> str:
    """The MLflow store of this sweep: the one asked for, or a SQLite database in OUT."""
    return config.places.tracking_uri or database_uri(config.places.out)


def describe_given(run: Run) -> str:
    """How accurate a network is that came trained, and what to check if it should be more; empty if trained here."""
    teacher = run.config.search.base.teacher
    if teacher.teacher_weights is None or teacher.teacher_epochs > 0:
        return ""
    found, images = run.teacher.metrics, run.dataset
    val, test = found["val_accuracy"], found["test_accuracy"]
    noise = 2 * math.sqrt(val * (1 - val) / images.num_val + test * (1 - test) / images.num_test)
    right = f"{100 * val:.1f} % of {images.num_val} validation and {100 * test:.1f} % of {images.num_test} test images"
    learned = " It has probably learned the validation images, which are cut off from train: put others into val."
    return (
        f"Your network gets {right} right.{learned if val - test > noise else ''} Should it be more, check its"
        " normalisation, its image size and the order of its classes, here:"
        f" {', '.join(images.class_names[:3])}{' ...' if images.num_classes > 3 else ''}"
    )


def announce(run: Run) -> None:
    """Say how a given teacher does, and deliver what `analysis` needs to read a running sweep."""
    told = describe_given(run)
    if told and not (isinstance(run.console, Screen) and run.console.mode == "quiet"):
        guessing = run.teacher.metrics["val_accuracy"] < 2 / run.dataset.num_classes
        run.console.print(told, soft_wrap=True, style="bold yellow" if guessing else None)
    folder = run.config.folder
    try:
        run.tracker.sweep_artifacts([folder / SWEEP_JSON])
    except TrackingError:
        return  # MLflow is away: `finish` reports that and delivers everything
    run.tracker.deliver(folder / TEACHER, scores_of(run.teacher, run.score))


def finish(run: Run, status: str) -> int:
    """Deliver what is left in the outbox, then publish and print the front; returns how many records still wait."""
    config, tracker, console = run.config, run.tracker, run.console
    tracker.try_again()
    waiting = deliver_all(tracker, outbox(config.folder), run.score)
    if waiting:  # a front drawn now would lack those records
        server = f" --tracking-uri {shlex.quote(uri)}" if (uri := config.places.tracking_uri) else ""
        sync = f"python -m analysis sync --out {shlex.quote(str(config.places.out))}{server}"
        console.print(
            f"{waiting} records wait in {config.folder} for MLflow ({tracker.away}); `{sync}` or the same command"
            " delivers them.",
            style="yellow",
            soft_wrap=True,
        )
        return waiting
    uri = tracking_uri(config)
    try:
        tracker.sweep_artifacts([config.folder / SWEEP_JSON])
        runs = publish(tracker, uri, config.folder / FRONT)
        tracker.close(status)
    except TrackingError as error:
        said = f"MLflow went away ({error}); the same command draws the front."
        console.print(said, style="yellow", soft_wrap=True)
        return 1
    show(console, runs, uri, config.folder / FRONT)
    return 0


def publish(tracker: Tracker, tracking_uri: str, folder: Path) -> Runs:
    """Write the front's files into `folder`, upload them to the sweep's MLflow run and tag its members there."""
    runs = read_runs(tracking_uri, parent_id=tracker.parent_id)
    tracker.mark_front(set(front_members(runs).index))
    tracker.sweep_metric("hypervolume", dict(hypervolume_curve(runs)))
    drawn = [*write_front(runs, folder), *write_controls(controls(runs.frame), folder)]
    tracker.sweep_artifacts(drawn)
    _offer(tracker, runs, folder.parent / REPORT, drawn)
    return runs


def add_files(config: SweepConfig, dataset: DatasetRecord, make: Callable[[Runs], list[Path]]) -> list[Path]:
    """Make files from a sweep's runs in MLflow and upload them to the sweep's own run; returns their paths.

    Raises:
        ValueError: if MLflow is away or cannot be used, or if `make` raises it.
    """
    uri = tracking_uri(config)
    tracker = open_tracker(uri, config, dataset, check_identity(config, dataset))
    try:
        files = make(read_runs(uri, parent_id=tracker.parent_id))  # by id: on a shared server a name may repeat
        tracker.sweep_artifacts(files)
    except TrackingError as error:
        raise ValueError(f"MLflow went away ({error})") from error
    return files


def _offer(tracker: Tracker, runs: Runs, folder: Path, drawn: Sequence[Path]) -> None:
    """Prepare MLflow's pages for browsing: report, description, a view of the runs, registered front members."""
    front = front_members(runs)
    tracker.tag_experiment(view_tags(runs.name))
    if front.empty:
        return
    tracker.sweep_artifacts(path for path in write_report(runs, folder, drawn=drawn) if path.stem == "report")
    members = {str(run_id): in_words(row) for run_id, row in front.iterrows()}
    model = tracker.register(runs.name, members, choose(front, runs.sweep["teacher"]))
    tracker.describe(summary_of(runs, model=model))


def show(console: Console, runs: Runs, tracking_uri: str, folder: Path) -> None:
    """Print the front, where its files are, and how to browse every trial."""
    front = front_members(runs)
    # Champions and controls are reported apart: they are no results of the search.
    searched = runs.frame[(runs.frame["stage"] == "candidate") & ~retrained(runs.frame)]
    counts = ", ".join(f"{count} {status}" for status, count in searched["status"].value_counts().items())
    console.print(f"\nSweep {runs.name}: {counts or 'no trials'}", soft_wrap=True)
    if front.empty:
        console.print("No trial has finished, so there is no front yet.")
    else:
        console.print(front_table(with_teacher(runs, front), variants=choose(front, runs.sweep["teacher"])))
        best = front.iloc[int(front["score"].argmax())]
        model = trial_folder(folder.parent, int(best["trial_number"])) / ONNX_FILE
        console.print(
            f"Best score {best['score']:.2f} points: trial {int(best['trial_number'])}, {model}", soft_wrap=True
        )
        console.print(str(reuse(runs.frame)), soft_wrap=True)
        if still := stood_still(runs.frame, runs.busy_s):
            console.print(still, soft_wrap=True, markup=False)
    print_controls(console, controls(runs.frame))
    if (folder / FRONT_PAGE).exists():
        console.print(f"Front: {folder / FRONT_PAGE}", soft_wrap=True)
    served = tracking_uri.startswith("http")
    if find_spec("dash"):  # of the extra `serve`
        console.print(f"Choose: {serve_command(runs.name, folder.parents[2], tracking_uri)}", soft_wrap=True)
    if not front.empty:
        console.print(f"Ship: {export_command(runs.name, folder.parents[2], tracking_uri)}", soft_wrap=True)
    browse = tracking_uri if served else f"mlflow ui --backend-store-uri {shlex.quote(tracking_uri)}"
    console.print(f"Browse: {browse}", soft_wrap=True)
    for what, address in addresses(runs).items():
        console.print(f"        {what}: {address}", soft_wrap=True)


def serve_command(name: str, out: Path, tracking_uri: str) -> str:
    """The command that serves a sweep's page, from the records in OUT or wherever else they are."""
    return shlex.join(["python", "-m", "analysis", "serve", "--name", name, *_records(out, tracking_uri)])


def export_command(name: str, out: Path, tracking_uri: str) -> str:
    """The command that writes the folder to ship of a sweep's balanced file."""
    words = ["python", "-m", "analysis", "export", f"{name}@balanced", "--to", "ship", *_records(out, tracking_uri)]
    return shlex.join(words)


def _records(out: Path, tracking_uri: str) -> list[str]:
    return ["--out", str(out)] if tracking_uri == database_uri(out) else ["--tracking-uri", tracking_uri]
