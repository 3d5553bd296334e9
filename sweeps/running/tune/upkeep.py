"""Callbacks of Tune that keep a run going: attempts of trials, standing still while one measures, the time spent."""

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from sweeps.cluster.ray_private import allow_failures, forgive_failure
from sweeps.planning.budget import Deadline
from sweeps.running.tune.retry import NODE_DIED, last_failure, reason_in
from trainables.files import write_text
from trainables.locks import DeviceLock
from trainables.records.encoding import to_json

NODE_DEATHS = 10  # that a trial survives without a new epoch
TIMESHEET_S = 5.0  # between two writes: a kill -9 loses at most this much of the time spent


class Allowance(tune.Callback):
    """Give a trial new attempts after every new epoch: preemption is not a failure, dying without progress is.

    The death of a node counts only if it happens again and again: the trial may be why.
    """

    def __init__(self, attempts: int) -> None:
        """`attempts` is how many times in a row a trial may die without finishing an epoch."""
        self._attempts = attempts
        self._stored: dict[str, set[tuple[str, int]]] = {}
        self._forgiven: Counter[str] = Counter()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial will be started again. Do not count the death of its node."""
        if self._forgiven[trial.trial_id] < NODE_DEATHS and reason_in(last_failure(trial)) == NODE_DIED:
            self._forgiven[trial.trial_id] += 1
            forgive_failure(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Tune: a trial has reported. If an epoch was trained for the first time, count attempts from here."""
        if "train_loss" not in result:  # a measured shape, or a result: every attempt reports those again
            return
        stored = self._stored.setdefault(trial.trial_id, set())
        epoch = str(result["stage"]), int(result["epoch"])
        if epoch not in stored:
            stored.add(epoch)
            self._forgiven.pop(trial.trial_id, None)
            allow_failures(trial, self._attempts)


class StandStill(tune.Callback):
    """Let Tune's loop stand still while a trial measures on this node: it asks all trials ten times a second."""

    def __init__(self, lock: DeviceLock) -> None:
        """`lock` is that of this node."""
        self._lock = lock

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Tune: its loop goes on. Wait until no trial measures."""
        with self._lock.shared():
            pass


class Timesheet(tune.Callback):
    """Save how much of a budget is spent, so that after a kill -9 the same command has only the rest of it."""

    def __init__(self, path: Path, deadline: Deadline) -> None:
        self._path, self._deadline, self._written = path, deadline, -TIMESHEET_S

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Tune: a step of its loop is over, several times a second. Save the time spent, if it is due."""
        if time.monotonic() < self._written + TIMESHEET_S:
            return
        self._written = time.monotonic()
        with suppress(OSError):  # a full disk is reported by more important writers
            write_text(self._path, to_json({"seconds": round(self._deadline.spent(), 1)}))
