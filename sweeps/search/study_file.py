"""The journal file of a sweep's study: open it safely after a kill -9, and rewrite it for a wider search.

A sweep may continue under its name with a wider space or another objective. In Optuna, neither a list of choices nor
the number of objectives of a study can grow. Trials keep their metrics as attributes, so that a new journal can hold
all of them, under the same numbers, as if the study had been so from the start.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from sweeps.search.config import Search
from sweeps.search.objectives import DIRECTIONS, study_directions, study_values
from sweeps.search.optuna_private import Forward, Replay
from sweeps.search.space import active
from trainables.files import drop_half_line, set_aside, write_bytes
from trainables.locks import open_locked

log = logging.getLogger(__name__)


class KernelLock(JournalFileOpenLock):
    """A lock of the kernel on an open file, released when its process dies; Optuna's would block for 30 s."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path, self._descriptor = path, -1

    def acquire(self) -> bool:
        """Wait for the lock and take it."""
        self._descriptor = open_locked(self._path)
        return True

    def release(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)


def open_journal(path: Path) -> JournalStorage:
    """Open the storage in a sweep's journal file; the caller holds the sweep's lock."""
    drop_half_line(path)  # Optuna skips a partial last line, but would append to it and corrupt the next record
    drop_damaged_end(path)
    return JournalStorage(Forward(str(path), lock_obj=KernelLock(path.with_name(f".{path.name}.lock"))))


def drop_damaged_end(path: Path) -> None:
    """Keep a journal up to its first line that Optuna cannot read; if there is one, the whole file is kept beside it.

    What came after cannot be told from it: lines build on those before them.
    """
    if not path.exists():
        return
    whole, replay = 0, Replay()
    with path.open("rb") as file:
        for line in file:
            if not replay.takes(line):
                break
            whole += len(line)
    if whole < path.stat().st_size:
        content = path.read_bytes()[:whole]
        log.warning("%s is damaged: it is kept as %s, and goes on from its sound part.", path, set_aside(path).name)
        write_bytes(path, content)


def holds(new: BaseDistribution, old: BaseDistribution) -> bool:
    """Whether the new distribution can give every value of the old one.

    Example:
        >>> holds(FloatDistribution(0.0, 1.0, step=0.1), FloatDistribution(0.5, 1.0, step=0.1))
        True
        >>> holds(CategoricalDistribution(("kd", "dkd")), CategoricalDistribution(("kd", "mse")))
        False
    """
    if isinstance(old, CategoricalDistribution):
        return all(contains(new, choice) for choice in old.choices)
    if not (isinstance(old, FloatDistribution) and isinstance(new, FloatDistribution)):
        return False
    return (old.step, old.log) == (new.step, new.log) and contains(new, old.low) and contains(new, old.high)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a distribution can give a value, up to the rounding of a stepped range."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution)
    if not isinstance(value, float | int) or not distribution.low - 1e-9 <= value <= distribution.high + 1e-9:
        return False
    steps = (value - distribution.low) / distribution.step if distribution.step else 0.0
    return bool(abs(steps - round(steps)) < 1e-6)


def write_anew(path: Path, name: str, search: Search, *, fixed: Mapping[str, Any]) -> None:
    """Replace a study's journal by one with a wider space or other objectives, and keep the old one beside it.

    Args:
        path: of the journal; the caller holds the sweep's lock.
        name: of the study.
        search: the new search; its space contains every value that was ever proposed.
        fixed: values of parameters from before they were searched.
    """
    if not path.exists():
        return
    new, number = path.with_name(f"{path.name}.new"), 1
    new.unlink(missing_ok=True)
    before = optuna.load_study(study_name=name, storage=open_journal(path))
    study = optuna.create_study(
        storage=open_journal(new), study_name=name, directions=study_directions(search.objective)
    )
    for trial in before.get_trials(deepcopy=True):
        study.add_trial(_renew(trial, search, fixed))
    for attribute, value in before.user_attrs.items():
        study.set_user_attr(attribute, value)
    while (kept := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    # A link, then a replacement: at no moment is there no journal, so that a crash here loses nothing.
    os.link(path, kept)
    new.replace(path)


def _renew(trial: FrozenTrial, search: Search, fixed: Mapping[str, Any]) -> FrozenTrial:
    """The trial as the new study would have recorded it."""
    space = search.space
    if trial.state is not TrialState.WAITING:
        whole = {**fixed, **trial.params}
        asked = active(whole, search.base)
        params = {name: value for name, value in whole.items() if name in trial.params or name in asked}
        before = trial.distributions
        trial.params = params
        trial.distributions = {
            name: space[name] if contains(space[name], value) else before[name] for name, value in params.items()
        }
    if trial.state is TrialState.COMPLETE:
        told = {metric: trial.user_attrs[metric] for metric in DIRECTIONS}
        trial.values = study_values(search.objective, told, trial.user_attrs["score"])
    return trial
