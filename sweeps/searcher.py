"""Tune searcher over Optuna's ask and tell, with a study on disk that survives any driver.

Own, because Ray's OptunaSearch tells stopped trials as complete, leaves trials running for ever when a metric is
missing, and loses what was in flight when the driver dies.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from sweeps.space import Space, canonical, first_trials, suggest

DUPLICATE = "duplicate"
MAX_DUPLICATES = 50


def open_study(path: Path, name: str, *, seed: int, space: Space) -> optuna.Study:
    """The sweep's study in its journal file; made, with the literature's trials first, if there is none.

    `optuna-dashboard PATH` opens it. The sampler's random state is not stored: it is seeded with the number of
    trials so far, so that a resumed sweep does not propose the first ones again.
    """
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name=name,
        direction="maximize",
        load_if_exists=True,
    )
    trials = study.get_trials(deepcopy=False)
    with warnings.catch_warnings():
        # group: without it, one trial that lacks a conditional parameter takes that one out of the joint distribution
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(trials), multivariate=True, group=True)
    if not trials:
        for point in first_trials(space):
            study.enqueue_trial(point)
    return study


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that need no more work: measured, stopped or failed, but not proposals dropped as duplicates."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and DUPLICATE not in trial.user_attrs
    ]


class StudySearcher(Searcher):
    """Hands the study's proposals to Tune and tells it what became of them.

    Told to Optuna: COMPLETE for a finished candidate with a finite score; PRUNED for one that was stopped or cannot
    work, so that samplers avoid the place; FAIL only for broken machines, which samplers ignore.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        *,
        trial_config: Callable[[int, Mapping[str, Any]], dict[str, Any]],
        score: Callable[[Mapping[str, float]], float],
    ) -> None:
        """Take the study over: no other driver may use it (the caller holds the sweep's lock).

        Args:
            trial_config: (trial number, proposed parameters) -> Tune config.
            score: a finished trial's metrics -> points, higher is better.
        """
        super().__init__()
        self._study = study
        self._space = dict(space)
        self._trial_config = trial_config
        self._score = score
        self._numbers: dict[str, int] = {}
        self.exhausted = False
        # No other driver is alive: what still runs in the study belongs to one that died, and is handed out again.
        self._orphans = [t.number for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's Tune config, or FINISHED when the space holds nothing new."""
        trial = self._trial(self._orphans.pop(0)) if self._orphans else self._propose()
        if trial is None:
            self.exhausted = True
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = trial.number
        # an orphan keeps what it has; one whose driver died while asking gets the rest now
        return self._trial_config(trial.number, suggest(trial, self._space))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended."""
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        trial = self._trial(number)
        if error:
            trial.set_user_attr("reason", "infrastructure error after retries")
            self._study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
            return
        result = result or {}
        score = self._score(result) if result.get("final") else math.nan
        if math.isfinite(score):
            for name in ("val_accuracy", "latency_p50_ms", "size_bytes", "macs"):
                trial.set_user_attr(name, result[name])
            self._study.tell(number, score, skip_if_finished=True)
            return
        trial.set_user_attr("reason", str(result.get("invalid") or "stopped before its end"))
        self._study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)

    def _propose(self) -> optuna.Trial | None:
        """A trial nobody has asked for before; None after `MAX_DUPLICATES` old ones in a row."""
        known = [
            canonical(trial.params)
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state not in (TrialState.WAITING, TrialState.FAIL) and DUPLICATE not in trial.user_attrs
        ]
        for _ in range(MAX_DUPLICATES):
            trial = self._study.ask()
            if canonical(suggest(trial, self._space)) not in known:
                return trial
            trial.set_user_attr(DUPLICATE, True)
            self._study.tell(trial, state=TrialState.PRUNED)
        return None

    def _trial(self, number: int) -> optuna.Trial:
        storage = self._study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
        return optuna.Trial(self._study, trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the state, and resuming is running the same command again."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""
