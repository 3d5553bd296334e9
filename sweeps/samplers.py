"""Who proposes the next trial: Optuna's samplers by name, and one that reuses what the store already holds."""

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

from sweeps.tpe import BoundedTPE

STUDENT_PARAMS = ("kd_loss", "temperature", "alpha", "dkd_beta", "learning_rate")
"""What decides the dense student: a trial that keeps these finds it in the store and only prunes and recovers."""
PROMISING_SHARE = 0.25


class _Grid(BruteForceSampler):
    """Every combination once, for `Study.ask`: Optuna's own calls `Study.stop` after the last, which asks nobody."""

    def after_trial(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        state: optuna.trial.TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Nothing: who asks once more gets a combination again, and drops it."""


def make_sampler(name: str, *, seed: int) -> BaseSampler:
    """The sampler of a `--sampler` name.

    Constraints steer `tpe` whatever became of a trial, `nsga2` and `gp` where it finished; what a limit forbids is
    neither run nor trained, whoever proposes it.
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


def keep_student(
    base: BaseSampler, trials: Sequence[optuna.trial.FrozenTrial], worth: Sequence[float], rng: np.random.Generator
) -> BaseSampler | None:
    """A sampler that keeps the student of a promising trial and leaves the rest to `base`; None if there is none.

    Args:
        trials: complete trials.
        worth: of each of them, higher is better; the student comes from the best quarter, drawn evenly.
    """
    if not trials:
        return None
    best = np.argsort(worth)[::-1][: max(1, round(PROMISING_SHARE * len(trials)))]
    kept = trials[int(rng.choice(best))]
    fixed: dict[str, Any] = {name: value for name, value in kept.params.items() if name in STUDENT_PARAMS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PartialFixedSampler(fixed, base) if fixed else None
