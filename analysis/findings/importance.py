"""Which parameter moved which metric: Optuna's importances from the trials in MLflow, without the sweep's study."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

TARGETS: Mapping[str, str] = {
    "val_accuracy": "val accuracy",
    "latency_p50_ms": "latency p50",
    "size_bytes": "size",
}
"""Metric -> heading."""
LOG_SPREAD = 8.0  # parameters whose values span more than this factor are taken on a log scale
FEW = 30  # with fewer trials, an importance is a hint at best
MOST = 1000  # more trials are sampled down: fANOVA's time grows with their square, to minutes for 10,000
# A sweep derives these from those (`--recovery-budget time`; a teacher that is its own student trains after the cut).
EPOCHS, DECIDING_EPOCHS = ("student_epochs", "recovery_epochs"), frozenset({"student_model", "pruning_ratio"})
EVALUATORS = {"fanova": "fANOVA", "ped-anova": "PED-ANOVA"}
"""Evaluator -> its name in print."""


def importance(frame: pd.DataFrame, params: Sequence[str], *, evaluator: str = "fanova", seed: int = 0) -> pd.DataFrame:
    """One row per varied parameter, the most important first; one column per target, shares from 0 to 1 that sum to 1.

    `fanova`: share of the variance that a random forest explains by the parameter, alone or with others (Hutter et
    al., ICML 2014). `ped-anova`: how far the parameter's distribution among the best tenth of the trials differs from
    that among all trials (Watanabe et al., arXiv:2304.10255); it describes good trials only. A parameter that only some
    trials have (in a conditional space) is left out, as in Optuna, and so are epochs where they follow from the network
    and its cut. A target with one value in all trials has NaN.

    Args:
        frame: finished candidates.
        params: columns that are parameters.
        evaluator: one of `EVALUATORS`.
        seed: of the random forest, and of the sample where there are more than `MOST` trials.

    Raises:
        ValueError: if the evaluator is unknown, or there are fewer than four trials or no varied parameter.
    """
    if evaluator not in EVALUATORS:
        raise ValueError(f"`evaluator` must be one of {', '.join(EVALUATORS)}, but got evaluator={evaluator!r}.")
    varied = [name for name in params if frame[name].notna().all() and frame[name].nunique() > 1]
    if DECIDING_EPOCHS.intersection(varied):
        varied = [name for name in varied if name not in EPOCHS]
    if len(frame) < 4 or not varied:
        raise ValueError(
            f"importance needs 4 trials and a varied parameter, but there are {len(frame)} and {len(varied)}."
        )
    frame = frame.sample(MOST, random_state=seed) if len(frame) > MOST else frame
    columns = {target: _shares(frame, varied, target, evaluator, seed) for target in TARGETS if target in frame.columns}
    table = pd.DataFrame(columns, index=pd.Index(varied, name="parameter"))
    return table.sort_values("val_accuracy", ascending=False)


def counted(trials: int) -> str:
    """How many of the finished trials an importance is computed from, in words."""
    return f"{MOST:,} of {trials:,} finished trials" if trials > MOST else f"{trials} finished trials"


def hint(trials: int) -> str:
    """A warning for fewer than `FEW` trials, as the end of a sentence; else empty."""
    return f"; so few trials give a hint, no finding ({FEW} and more do)" if trials < FEW else ""


def share_text(value: float) -> str:
    """`0.42`, or a dash for a target that does not vary."""
    return f"{value:.2f}" if np.isfinite(value) else "-"


def _shares(frame: pd.DataFrame, varied: Sequence[str], target: str, evaluator: str, seed: int) -> dict[str, float]:
    # Optuna is no dependency of reading a sweep: it is imported only where it computes.
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

    rows = frame[np.isfinite(frame[target].astype(float))]
    if len(rows) < 4 or rows[target].nunique() < 2:
        return dict.fromkeys(varied, np.nan)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both evaluators are marked experimental
            chosen = FanovaImportanceEvaluator(seed=seed) if evaluator == "fanova" else PedAnovaImportanceEvaluator()
            study = _study(rows, varied, target)
            found = optuna.importance.get_param_importances(study, evaluator=chosen, params=list(varied))
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {name: float(value) for name, value in found.items()}


def _study(rows: pd.DataFrame, varied: Sequence[str], target: str) -> Any:
    """The trials as a study in memory; an accuracy is maximised, latency and size are minimised."""
    import optuna

    direction = "maximize" if target.endswith("accuracy") else "minimize"
    study = optuna.create_study(direction=direction, storage=optuna.storages.InMemoryStorage())
    space = {name: _distribution(rows[name]) for name in varied}
    columns = {name: _plain(rows[name]) for name in varied}
    values = rows[target].astype(float).tolist()
    study.add_trials(
        optuna.trial.create_trial(
            params={name: column[at] for name, column in columns.items()}, distributions=space, value=values[at]
        )
        for at in range(len(rows))
    )
    return study


def _distribution(column: "pd.Series[Any]") -> Any:
    """A distribution that contains every value of the column."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    values = _plain(column)
    if any(isinstance(value, bool | str) for value in values):
        return CategoricalDistribution(sorted(set(values), key=str))
    low, high = min(values), max(values)
    return FloatDistribution(low, high, log=low > 0 and high / low > LOG_SPREAD)


def _plain(column: "pd.Series[Any]") -> list[Any]:
    """The column's values as Python objects: numbers as float, everything else unchanged."""
    return [value if isinstance(value, bool | str) else float(value) for value in column.tolist()]
