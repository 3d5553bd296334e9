"""Follows a sweep through Tune's callbacks and keeps whoever watches it up to date."""

from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from rich.console import Console

from sweeps.display.console import Screen
from sweeps.display.standing import Standing
from sweeps.display.views import View, view_of
from trainables.records.trial import TrialRecord


class Progress(tune.Callback):
    """Brings what Tune and the delivery report to a standing and a view; holds nothing that a resume needs."""

    def __init__(self, console: Console, *, gpus: bool = False, **standing: Any) -> None:
        """Take where to speak and what `Standing` begins with; `gpus` says whether their use is shown."""
        self._console = console
        self._standing = Standing(**standing)
        self._view: View = view_of(console, self._standing, gpus=gpus)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles callbacks; a console and its locks do not belong to that."""
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
        """A trial has its result; `score` in points, higher is better."""
        self._standing.note(label, record)
        self._view.ended(label, record, score, summary)

    def dropped(self, label: str, record: TrialRecord) -> None:
        """A trial ended without a candidate: stopped, infeasible or failed."""
        self._standing.note(label, record)
        self._view.ended(label, record, None, "")

    def label(self, trial: Trial) -> str:
        """What a trial is called."""
        number = trial.config["task"].trial_number  # a `Task`, of a room above this one
        return "teacher" if number is None else str(number)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial has got its resources."""
        if isinstance(self._console, Screen):
            self._console.first_trial()
        self._standing.pace.began(trial.trial_id)
        self._standing.running[trial.trial_id] = f"{self.label(trial):>7}  starting"

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Tune: an epoch is over, or the shape is known, or all of it is."""
        if "epoch" not in result:
            self._standing.pace.reported(trial.trial_id)
            return
        step, steps = result.get("step", result["epoch"]), result.get("steps", result["epochs"])
        self._standing.pace.epoch(trial.trial_id, step=step, steps=steps)
        label = self.label(trial)
        stage = "epoch" if result["stage"] == label else result["stage"]
        self._standing.running[trial.trial_id] = (
            f"{label:>7}  {stage:<8} {result['epoch']}/{result['epochs']}  val {100 * result['val_accuracy']:.1f} %"
        )

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial has ended by itself."""
        self._over(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial has failed for good."""
        self._over(trial)

    def _over(self, trial: Trial) -> None:
        self._standing.running.pop(trial.trial_id, None)
        self._standing.pace.ended(trial.trial_id)
        self._standing.done += 1
