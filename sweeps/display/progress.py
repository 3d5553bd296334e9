"""Callback of Tune that follows a sweep and keeps its display up to date."""

import math
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from rich.console import Console

from sweeps.display.console import Screen
from sweeps.display.standing import Standing
from sweeps.display.views import View, view_of
from trainables.records.trial import TrialRecord

WAITING_S = 60.0  # a local Ray starts a trial within a few seconds, a node of a cloud within minutes
RESOURCES = ("CPU", "GPU")


class Progress(tune.Callback):
    """Pass the reports of Tune and of the delivery on to a standing and a view; a resume needs nothing of it.

    Args:
        console: where to print.
        gpus: whether to show the use of GPUs.
        standing: arguments of `Standing`.
    """

    def __init__(self, console: Console, *, gpus: bool = False, **standing: Any) -> None:
        """Begin with a new standing, and the view that suits the console."""
        self._console = console
        self._standing = Standing(**standing)
        self._view: View = view_of(console, self._standing, gpus=gpus)
        self._idle_since: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles callbacks, and a console and its locks cannot be pickled."""
        return {}

    def __enter__(self) -> "Progress":
        if isinstance(self._console, Screen):
            self._console.go_on()
        self._view.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._view.stop()
        if isinstance(self._console, Screen):
            self._console.wait("Bringing everything to MLflow")

    def finished(self, label: str, record: TrialRecord, score: float, summary: str) -> None:
        """Show a trial's result; `score` in points, higher is better."""
        self._standing.note(label, record)
        self._view.ended(label, record, score, summary)

    def dropped(self, label: str, record: TrialRecord) -> None:
        """Show that a trial ended without a candidate: stopped, infeasible or failed."""
        self._standing.note(label, record)
        self._view.ended(label, record, None, "")

    def label(self, trial: Trial) -> str:
        """The name of a trial."""
        number = trial.config["task"].trial_number  # a `Task`; its room lies above this one, so no `task_of` here
        return "teacher" if number is None else str(number)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial has its resources and starts. Show it as running."""
        if isinstance(self._console, Screen):
            self._console.first_trial()
        self._standing.pace.began(trial.trial_id)
        self._standing.running[trial.trial_id] = f"{self.label(trial):>7}  starting"

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Tune: an epoch, the measurement of the shape, or the whole trial is over. Show an epoch."""
        if "epoch" not in result:
            self._standing.pace.reported(trial.trial_id)
            return
        step, steps = result.get("step", result["epoch"]), result.get("steps", result["epochs"])
        taught, views = result.get("taught", True), result.get("taught_views")
        self._standing.pace.epoch(trial.trial_id, step=step, steps=steps, taught=taught, views=views)
        label = self.label(trial)
        # A teacher's label and stage are the same word.
        stage = "epoch" if result["stage"] == label else result["stage"]
        self._standing.running[trial.trial_id] = (
            f"{label:>7}  {stage:<8} {result['epoch']}/{result['epochs']}  val {100 * result['val_accuracy']:.1f} %"
        )

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Tune: a step of its loop is over, several times a second. Say once if trials wait and none can run."""
        waiting = [trial for trial in trials if trial.status == Trial.PENDING]
        if not waiting or any(trial.status == Trial.RUNNING for trial in trials):
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = time.monotonic()
        elif time.monotonic() > self._idle_since + WAITING_S:
            self._idle_since = math.inf
            one = _amounts(waiting[0].placement_group_factory.required_resources)
            text = f"No trial has run for {WAITING_S:.0f} s: one takes {one}, the cluster has"
            text += f" {_amounts(ray.cluster_resources())}. It goes on when there is room; `ray status` tells more."
            self._console.print(text, style="yellow", markup=False, soft_wrap=True)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial has ended without an error."""
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial has failed for good."""
        self._end(trial)

    def _end(self, trial: Trial) -> None:
        self._standing.end(trial.trial_id)


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in RESOURCES)
