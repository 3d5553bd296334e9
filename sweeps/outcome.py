"""The end of a sweep: its front in MLflow, on disk and on the screen."""

import shlex
from pathlib import Path

from rich.console import Console

from analysis.front import choose, front_members, front_table, hypervolume_curve, with_teacher, write_front
from analysis.runs import Runs, read_runs
from trainables.tracking import Tracker


def publish(tracker: Tracker, tracking_uri: str, sweep: str, folder: Path) -> Runs:
    """Write the front's files into `folder`, put them on the sweep's MLflow run and tag its members there."""
    runs = read_runs(tracking_uri, sweep)
    front = set(front_members(runs).index)
    tracker.mark_front(front, set(runs.frame.index) - front)
    for trial, volume in hypervolume_curve(runs):
        tracker.sweep_metric("hypervolume", volume, step=trial)
    tracker.sweep_artifacts(write_front(runs, folder))
    return runs


def show(console: Console, runs: Runs, tracking_uri: str, folder: Path) -> None:
    """Print the front, where its files are, and how to browse every trial."""
    front = front_members(runs)
    if front.empty:
        console.print("No trial has finished, so there is no front yet.")
    else:
        console.print(front_table(with_teacher(runs, front), variants=choose(front, runs.sweep["teacher"])))
        best = front.iloc[int(front["score"].argmax())]
        model = folder.parent / "trials" / f"{int(best['trial_number']):05}" / "model.onnx"
        console.print(
            f"Best score {best['score']:.2f} points: trial {int(best['trial_number'])}, {model}", soft_wrap=True
        )
    console.print(f"Front: {folder / 'pareto.html'}")
    console.print(f"Browse: mlflow ui --backend-store-uri {shlex.quote(tracking_uri)}", soft_wrap=True)
