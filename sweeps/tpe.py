"""TPE whose time for a proposal does not grow with the sweep."""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from analysis.pareto import Floats, non_dominated

REMEMBERED = 1000
"""Up to twice as many trials are all weighed; beyond, the best of them and an even share of the rest."""
GOOD_SHARE = 0.25
"""Of those remembered, chosen for being good; Optuna's TPE calls a tenth so where there are several objectives."""


class BoundedTPE(TPESampler):
    """Optuna's TPE, shown a part of the study once more than 2 * REMEMBERED trials have ended.

    Optuna's own weighs every trial for every proposal: 0.3 s each after 10,000 with three objectives. All but the best
    stand for a density alone, which an even share of them shows as well.
    """

    def __init__(self, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # group: without it, one trial that lacks a conditional parameter takes it out of the joint distribution
            super().__init__(seed=seed, multivariate=True, group=True)
        self._chance = np.random.default_rng(seed)
        self._forgotten: set[int] = set()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Forget, where there are too many."""
        ended = [
            ended
            for ended in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            if ended.number not in self._forgotten
        ]
        if len(ended) > 2 * REMEMBERED:
            kept = {one.number for one in remembered(ended, study.directions, self._chance)}
            self._forgotten |= {one.number for one in ended} - kept
        super().before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As Optuna's, of what is remembered."""
        space: dict[str, BaseDistribution] = super().infer_relative_search_space(self._part(study), trial)
        return space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As Optuna's, of what is remembered."""
        params: dict[str, Any] = super().sample_relative(self._part(study), trial, search_space)
        return params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As Optuna's, of what is remembered."""
        return super().sample_independent(self._part(study), trial, param_name, param_distribution)

    def _part(self, study: optuna.Study) -> optuna.Study:
        return cast(optuna.Study, _Part(study, self._forgotten)) if self._forgotten else study


class _Part:
    """A study without some of its trials, for the method by which Optuna's samplers read them."""

    def __init__(self, study: optuna.Study, forgotten: set[int]) -> None:
        self._study, self._forgotten = study, forgotten

    def _get_trials(self, *words: Any, **named: Any) -> list[FrozenTrial]:
        return [trial for trial in self._study._get_trials(*words, **named) if trial.number not in self._forgotten]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)


def remembered(
    trials: Sequence[FrozenTrial], directions: Sequence[optuna.study.StudyDirection], rng: np.random.Generator
) -> list[FrozenTrial]:
    """REMEMBERED of the trials, in their order: the first layers of the front, and of the others an even share.

    Args:
        trials: complete or pruned.
        directions: of their values.
    """
    valued = [
        at
        for at, trial in enumerate(trials)
        if trial.state == TrialState.COMPLETE and all(excess <= 0 for excess in trial.constraints.values())
    ]
    signs = [-1.0 if direction == optuna.study.StudyDirection.MAXIMIZE else 1.0 for direction in directions]
    points = np.array([trials[at].values for at in valued]).reshape(len(valued), len(signs)) * signs
    kept = {valued[at] for at in _first_layers(points, round(GOOD_SHARE * REMEMBERED), rng)}
    others = [at for at in range(len(trials)) if at not in kept]
    kept.update(rng.choice(others, size=REMEMBERED - len(kept), replace=False).tolist())
    return [trials[at] for at in sorted(kept)]


def _first_layers(points: Floats, count: int, rng: np.random.Generator) -> list[int]:
    """At most `count` rows: of the front, of the front without those, and so on; an even share of the last layer."""
    found: list[int] = []
    left = np.arange(len(points))
    while len(found) < count and len(left):
        layer = non_dominated(points[left])
        found += rng.permutation(left[layer]).tolist()
        left = left[~layer]
    return found[:count]
