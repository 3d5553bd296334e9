"""A sweep that goes on under its name with a wider space or another objective: its study is written anew.

Optuna does not let a list of choices grow in a study, nor the number of its objectives. What trials were told is in
their attributes, so that a new journal can hold them all, under the same numbers, as if it had been so from the start.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from sweeps.search.config import Search
from sweeps.search.journal import open_journal
from sweeps.search.objectives import DIRECTIONS, study_directions, study_values
from sweeps.search.space import active


def holds(new: BaseDistribution, old: BaseDistribution) -> bool:
    """Whether every value of one distribution is one of another.

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
    """Whether a distribution can give a value; rounding of a stepped range's values does not count."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution)
    if not isinstance(value, float | int) or not distribution.low - 1e-9 <= value <= distribution.high + 1e-9:
        return False
    steps = (value - distribution.low) / distribution.step if distribution.step else 0.0
    return bool(abs(steps - round(steps)) < 1e-6)


def write_anew(path: Path, name: str, search: Search, *, fixed: Mapping[str, Any]) -> None:
    """Replace a study's journal by one over a wider space or with other objectives; the old one stays beside it.

    Args:
        path: of the journal; the caller holds the sweep's lock.
        name: of the study.
        search: what is searched from now on; its space holds every value that was ever proposed.
        fixed: values that parameters had before they were searched.
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
    os.link(path, kept)
    new.replace(path)


def _renew(trial: FrozenTrial, search: Search, fixed: Mapping[str, Any]) -> FrozenTrial:
    """The trial as the new study would have it."""
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
