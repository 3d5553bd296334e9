"""The samplers that propose trials: Optuna's by name, and one that reuses a student from the store."""

import bisect
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    GPSampler,
    NSGAIISampler,
    PartialFixedSampler,
    RandomSampler,
)

from sweeps.search.sampling.tpe import BoundedTPE
from sweeps.search.space import STUDENT_PARAMS

PROMISING_SHARE = 0.25  # of the finished trials, best first


class _Grid(BruteForceSampler):
    """Every combination once, for `Study.ask`: after the last, Optuna's own calls `Study.stop`, which raises there."""

    def after_trial(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        state: optuna.trial.TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Nothing: after the last combination, the searcher gets an old one again and drops it."""


def make_sampler(name: str, *, seed: int) -> BaseSampler:
    """The sampler for a name of `--sampler`.

    `tpe` learns constraints from all trials, `nsga2` and `gp` only from finished ones. With every sampler, a proposal
    that a limit rules out is neither run nor trained.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "tpe":
                return BoundedTPE(seed)
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=20)
            case "gp":
                return GPSampler(seed=seed)
            case "random":
                return RandomSampler(seed=seed)
            case "grid":
                return _Grid(seed=seed)
    raise ValueError(f"`sampler` must be a name of `--sampler`, but got sampler={name!r}.")


class Promising:
    """The students of trials that finished within their limits, best first."""

    def __init__(self) -> None:
        self._ranked: list[tuple[float, dict[str, Any]]] = []

    def add(self, trial: optuna.trial.FrozenTrial, score: float) -> None:
        """Add a finished trial, unless it exceeds a limit.

        Args:
            score: higher is better.
        """
        if all(excess <= 0 for excess in trial.constraints.values()):
            student = {name: value for name, value in trial.params.items() if name in STUDENT_PARAMS}
            bisect.insort(self._ranked, (-score, student), key=lambda ranked: ranked[0])

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw a student uniformly from the best quarter; empty if there is none."""
        if not self._ranked:
            return {}
        best = max(1, round(PROMISING_SHARE * len(self._ranked)))
        return self._ranked[int(rng.integers(best))][1]


def keep_student(base: BaseSampler, student: dict[str, Any]) -> BaseSampler:
    """A sampler that fixes the parameters of a student and leaves the others to `base`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PartialFixedSampler(student, base)
