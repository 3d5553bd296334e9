"""The state of a running sweep: what has ended, what runs, the front so far, the time left."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from analysis.findings.front import front_of, most_accurate_first
from analysis.findings.reuse import Reuse, reuse
from sweeps.display.durations import Range
from sweeps.display.time_left import Pace
from sweeps.search.objectives import DIRECTIONS
from trainables.layout import RECORD, TEACHER, TRIALS, has_record, recorded
from trainables.records.encoding import read_json
from trainables.records.trial import TrialRecord, read_trial
from trainables.store.entries import made_since
from trainables.store.results import Store

STATES = ("finished", "stopped", "infeasible", "failed")
ESTIMATE_S = 5.0  # an estimate is kept and counted down for this long, not simulated at every redraw


class Standing:
    """State of a running sweep, for display; a resume needs nothing of it."""

    def __init__(
        self,
        *,
        phase: str,
        title: str,
        trials: int,
        done: int,
        concurrency: int,
        teacher: str | None = None,
        folder: Path | None = None,
        store: Store | None = None,
        stops: bool = False,
        until: Callable[[], float] | None = None,
    ) -> None:
        """Begin at `done` of `trials`.

        Args:
            phase: `teacher`, `trials`, `champions` or `end`.
            title: first line of the display.
            trials: how many finished trials are wanted in all.
            done: how many of them earlier runs have finished.
            concurrency: trials at once.
            teacher: second line of the display, once there is a teacher.
            folder: OUT/sweeps/NAME, with the records of earlier runs.
            store: of the sweep; its soft labels record how long they took.
            stops: whether trials are stopped early.
            until: seconds that the sweep may still take, if its time is limited.
        """
        self.phase, self.title, self.teacher = phase, title, teacher
        self.trials, self.done, self.concurrency = trials, done, concurrency
        self.states: Counter[str] = Counter()
        self.running: dict[str, str] = {}
        since = time.time()
        self.pace = Pace(concurrency=concurrency, stops=stops, labels_s=lambda: label_seconds(store, since))
        self._rows: dict[str, dict[str, Any]] = {}
        self._started = time.monotonic()
        self._until = until
        self._estimate: tuple[float, Range | None] = (-ESTIMATE_S, None)
        self._front: pd.DataFrame | None = None
        for record in _earlier_records(folder):
            self.note(_label(record), record)
        self._teacher_row = _teacher_row(folder)

    @property
    def elapsed_s(self) -> float:
        """Seconds since this run of the sweep began."""
        return time.monotonic() - self._started

    @property
    def goes_on(self) -> bool:
        """Whether there are trials to come: those that were planned, or as many as fit until a deadline."""
        return self.done < self.trials or self._until is not None

    def end(self, trial_id: str) -> None:
        """Note that a trial runs no more."""
        self.running.pop(trial_id, None)
        self.pace.ended(trial_id)
        self.done += 1
        self.trials = max(self.trials, self.done)  # until a deadline, there may be more than were planned

    def note(self, label: str, record: TrialRecord) -> None:
        """Note that a trial has ended, now or in an earlier run; controls are counted but never on the front."""
        self.states[record.status] += 1
        if record.status == "finished" and "control" not in record.tags:
            self._rows[label] = _row(record)
            self._front = None  # to be computed again at the next look

    def front(self) -> pd.DataFrame:
        """The finished trials that no other dominates, most accurate first; the index holds their labels."""
        if self._front is None:
            self._front = most_accurate_first(front_of(self._rows, DIRECTIONS))
        return self._front

    def teacher_metrics(self) -> Mapping[str, Any]:
        """The teacher's row; empty before there is one."""
        return self._teacher_row or {}

    def reused(self) -> Reuse:
        """How much time the store has saved."""
        rows = [*([self._teacher_row] if self._teacher_row else []), *self._rows.values()]
        return reuse(pd.DataFrame(rows)) if self._rows else Reuse(trials=0, of=0, seconds=0.0)

    def left(self) -> Range | None:
        """Seconds until the last trial has ended, or until the deadline if there is one; None while unknown."""
        if self._until is not None:  # the search goes on to its deadline
            return Range(*[self._until()] * 3)
        at, estimate = self._estimate
        since = time.monotonic() - at
        if since >= ESTIMATE_S:
            waiting = max(0, self.trials - self.done - len(self.running))
            self._estimate, since = (time.monotonic(), self.pace.left(waiting)), 0.0
            estimate = self._estimate[1]
        if estimate is None:
            return None
        return Range(*(max(0.0, s - since) for s in (estimate.low, estimate.expected, estimate.high)))


def label_seconds(store: Store | None, since: float) -> float:
    """Median seconds that the soft labels of a view took since a Unix time; 0 if none were computed.

    Labels that other nodes computed count only if a trial of this node has fetched them, which avoids network requests.
    """
    folders = [] if store is None else made_since(store.here, "soft_labels", since)
    seconds = []
    for folder in folders:
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # damaged: it will be computed again
            seconds.append(float(read_json(folder / RECORD)["seconds"]))
    return median(seconds) if seconds else 0.0


def _row(record: TrialRecord) -> dict[str, Any]:
    return {**record.params, **record.metrics, "stage": record.stage, "status": record.status}


def _label(record: TrialRecord) -> str:
    return str(record.trial_number)


def _earlier_records(folder: Path | None) -> list[TrialRecord]:
    return [] if folder is None else [read_trial(trial) for trial in recorded(folder / TRIALS)]


def _teacher_row(folder: Path | None) -> dict[str, Any] | None:
    if folder is None or not has_record(folder / TEACHER):
        return None
    return _row(read_trial(folder / TEACHER))
