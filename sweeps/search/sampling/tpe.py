"""TPE whose time per proposal does not grow with the sweep."""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from analysis.findings.pareto import SIGNS, Floats, epsilon_net, non_dominated
from sweeps.search.optuna_private import PartOfStudy, cached_trials

# Up to twice as many trials are all used; beyond that, the best of them and a random sample of the rest.
REMEMBERED = 1000
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
# Share of the remembered trials chosen for their values; with several objectives, Optuna's TPE treats a tenth as good.
GOOD_SHARE = 0.25


class BoundedTPE(TPESampler):
    """Optuna's TPE, restricted to a part of the study once more than 2 * REMEMBERED trials have ended.

    Optuna's own weighs every trial for every proposal: after 10,000 trials with three objectives, 0.21 s per proposal
    against 0.02 s here (one core of an AMD EPYC, n = 10). All but the best trials only define a density, which a random
    sample of them represents as well.
    """

    def __init__(self, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # group: without it, one trial that lacks a conditional parameter takes it out of the joint distribution
            super().__init__(seed=seed, multivariate=True, group=True)
        self._chance = np.random.default_rng(seed)
        self._kept: list[int] = []
        self._next = 0
        self._part: optuna.Study | None = None

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Add new trials, and forget some when there are too many."""
        trials = cached_trials(study)
        self._kept += range(self._next, len(trials))
        self._next = len(trials)
        ended = [trials[at] for at in self._kept if trials[at].state in ENDED]
        if len(ended) > 2 * REMEMBERED:
            every = [one for one in trials if one.state in ENDED]
            chosen = {one.number for one in remembered(every, study.directions, self._chance)}
            self._kept = sorted(chosen.union(at for at in self._kept if not trials[at].state.is_finished()))
        self._part = cast(optuna.Study, PartOfStudy(study, [trials[at] for at in self._kept]))
        super().before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As Optuna's, of what is remembered."""
        space: dict[str, BaseDistribution] = super().infer_relative_search_space(self._part or study, trial)
        return space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As Optuna's, of what is remembered."""
        params: dict[str, Any] = super().sample_relative(self._part or study, trial, search_space)
        return params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As Optuna's, of what is remembered."""
        return super().sample_independent(self._part or study, trial, param_name, param_distribution)


def remembered(
    trials: Sequence[FrozenTrial], directions: Sequence[optuna.study.StudyDirection], rng: np.random.Generator
) -> list[FrozenTrial]:
    """REMEMBERED of the trials, in their order: the first layers of the front, and a random sample of the others.

    Args:
        trials: complete or pruned, more than REMEMBERED.
        directions: of their values.
    """
    valued = [
        at
        for at, trial in enumerate(trials)
        if trial.state == TrialState.COMPLETE and all(excess <= 0 for excess in trial.constraints.values())
    ]
    signs = [SIGNS[direction.name.lower()] for direction in directions]
    points = np.array([trials[at].values for at in valued]).reshape(len(valued), len(signs)) * signs
    kept = {valued[at] for at in _first_layers(points, round(GOOD_SHARE * REMEMBERED))}
    others = [at for at in range(len(trials)) if at not in kept]
    kept.update(rng.choice(others, size=REMEMBERED - len(kept), replace=False).tolist())
    return [trials[at] for at in sorted(kept)]


def _first_layers(points: Floats, count: int) -> list[int]:
    """At most `count` rows: the front, then the front of the rest, and so on; the last layer is thinned out evenly."""
    found: list[int] = []
    left = np.arange(len(points))
    while len(found) < count and len(left):
        layer = non_dominated(points[left])
        found += left[layer][epsilon_net(points[left[layer]], count - len(found))].tolist()
        left = left[~layer]
    return found
