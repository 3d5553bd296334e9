"""A sweep as it stands now: read again when its records have changed, and never so often that trials would feel it."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from analysis.findings.front import choose, competing, most_accurate_first, with_teacher
from analysis.reading.runs import Runs
from analysis.reading.wording import kinds_of, merged_names, trial_label
from trainables.config.escaping import plain
from trainables.layout import SQLITE, database_path

FILE_PAUSE_S = 2.0  # between two looks at a database file, whose time of change is asked first
SERVER_PAUSE_S = 10.0  # between two readings of a tracking server, which cannot be asked for less
SHARE = 20  # reading takes at most one part in so many of one core: 10,000 candidates take two seconds to read


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The sweep as it was when it was read last."""

    version: int
    """Grows when what is shown changes."""
    runs: Runs
    candidates: pd.DataFrame
    """Those that compete, the most accurate first, with the columns `pareto`, `may_be_optimal` and `mark`: a number
    that a candidate keeps for as long as the server runs."""
    teacher: pd.DataFrame
    """One row, with the same columns; it has no run of its own where MLflow has none of the teacher."""
    names: Mapping[str, str]
    """Run id -> `fastest, smallest`, of those that have a name."""
    read_at: float
    """Unix time, seconds."""

    @cached_property
    def kinds(self) -> "pd.Series[str]":
        """What kind of candidate each one is, in words."""
        return kinds_of(self.candidates)

    @cached_property
    def labels(self) -> "pd.Series[str]":
        """`trial 12`, of every candidate and the teacher, as it may be shown."""
        everyone = pd.concat([self.candidates, self.teacher])
        named = everyone[[name for name in ("stage", "trial_number", "label") if name in everyone.columns]]
        rows = ({str(key): value for key, value in row.items()} for row in named.to_dict("records"))
        return pd.Series([plain(trial_label(row)) for row in rows], index=everyone.index)

    @cached_property
    def varied(self) -> frozenset[str]:
        """The settings in which candidates differ."""
        known = (name for name in self.runs.params if name in self.candidates.columns)
        return frozenset(name for name in known if self.candidates[name].nunique(dropna=False) > 1)


class Watched:
    """One sweep of one store, shared by all requests."""

    def __init__(self, tracking_uri: str, read: Callable[[str | None], Runs]) -> None:
        """Read the sweep for the first time.

        Args:
            tracking_uri: the MLflow store.
            read: reads the sweep of a name, without one the first time; raises a ValueError if it cannot.
        """
        self._database = database_path(tracking_uri) if tracking_uri.startswith(SQLITE) else None
        self._read, self._lock = read, threading.Lock()
        self._marks: list[str] = []
        self._changed = self._change()
        self.trouble = ""
        """Why the last reading failed; empty if it did not."""
        started = time.monotonic()
        self.standing = self._stand(read(None), version=1)
        self._next = self._pause(started)

    def look(self) -> Standing:
        """The sweep as it stands, read again if it is time and something has changed."""
        if not self._lock.acquire(blocking=False):
            return self.standing  # another request is reading
        try:
            if time.monotonic() >= self._next:
                self._look()
        finally:
            self._lock.release()
        return self.standing

    def run_of(self, mark: int) -> str | None:
        """The run that has a mark."""
        return self._marks[mark] if 0 <= mark < len(self._marks) else None

    def _look(self) -> None:
        started, change = time.monotonic(), self._change()
        if change is None or change != self._changed:
            try:
                runs = self._read(self.standing.runs.name)  # a newer sweep does not take its place
            except ValueError as error:  # the store is away for now: what was read stays on the page
                self.trouble = str(error)
            else:
                self.trouble, self._changed = "", change
                same = runs.frame.equals(self.standing.runs.frame)
                self.standing = self._stand(runs, version=self.standing.version + (not same))
        self._next = self._pause(started)

    def _pause(self, started: float) -> float:
        """When to look again, after a reading that began at `started`."""
        now = time.monotonic()
        return now + max(FILE_PAUSE_S if self._database else SERVER_PAUSE_S, SHARE * (now - started))

    def _change(self) -> tuple[tuple[int, int], ...] | None:
        """Times of change and sizes of the database's files; None where there are no files to ask."""
        if self._database is None:
            return None
        # SQLite writes beside the file first: in a -wal, or in a -journal that tells of a change under way
        files = [self._database, *(Path(f"{self._database}{end}") for end in ("-wal", "-journal"))]
        return tuple((status.st_mtime_ns, status.st_size) for file in files if (status := _status(file)))

    def _stand(self, runs: Runs, *, version: int) -> Standing:
        candidates = most_accurate_first(competing(runs))
        known = {run_id: mark for mark, run_id in enumerate(self._marks)}
        teacher = with_teacher(runs, candidates.head(0))
        for run_id in (*teacher.index, *candidates.index):
            if run_id not in known:
                known[run_id] = len(self._marks)
                self._marks.append(str(run_id))
        front = candidates[candidates["pareto"]] if len(candidates) else candidates
        return Standing(
            version=version,
            runs=runs,
            candidates=candidates.assign(mark=[known[run_id] for run_id in candidates.index]),
            teacher=teacher.assign(mark=[known[run_id] for run_id in teacher.index]),
            names=merged_names(choose(front, runs.sweep["teacher"])) if len(front) else {},
            read_at=time.time(),
        )


def _status(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:
        return None
