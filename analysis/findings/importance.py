"""Which parameter moved what: importances by Optuna from the trials that MLflow holds, without the sweep's study."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

TARGETS: Mapping[str, str] = {
    "val_accuracy": "val accuracy",
    "latency_p50_ms": "latency p50",
    "size_bytes": "size",
}
"""Metric -> heading."""
LOG_SPREAD = 8.0
"""Positive numbers that differ by more than this factor are taken on a log scale."""
FEW = 30
"""Below so many trials an importance is a hint at best."""
MOST = 1000
"""So many trials are weighed, drawn evenly: fANOVA's time grows with their square, to minutes for 10,000."""
EVALUATORS = ("fanova", "ped-anova")


def importance(frame: pd.DataFrame, params: Sequence[str], *, evaluator: str = "fanova", seed: int = 0) -> pd.DataFrame:
    """One row per varied parameter, the most telling first; a column per target, shares from 0 to 1 that add up to 1.

    `fanova`: share of the variance that a random forest explains by the parameter alone or with others (Hutter et al.,
    ICML 2014). `ped-anova`: how far the parameter's distribution among the best tenth of the trials differs from that
    among all (Watanabe et al., arXiv:2304.10255); local to good trials. A parameter that only some trials have (one of
    a conditional space) is left out, as Optuna leaves it out; a target that all trials share has NaN.

    Args:
        frame: finished candidates.
        params: columns that are parameters.
        evaluator: one of `EVALUATORS`.
        seed: of the random forest.

    Raises:
        ValueError: if the evaluator is unknown, or there are fewer than four trials or no varied parameter.
    """
    if evaluator not in EVALUATORS:
        raise ValueError(f"`evaluator` must be one of {', '.join(EVALUATORS)}, but got evaluator={evaluator!r}.")
    varied = [name for name in params if frame[name].notna().all() and frame[name].nunique() > 1]
    if len(frame) < 4 or not varied:
        raise ValueError(
            f"importance needs 4 trials and a varied parameter, but there are {len(frame)} and {len(varied)}."
        )
    frame = frame.sample(MOST, random_state=seed) if len(frame) > MOST else frame
    columns = {target: _shares(frame, varied, target, evaluator, seed) for target in TARGETS if target in frame.columns}
    table = pd.DataFrame(columns, index=pd.Index(varied, name="parameter"))
    return table.sort_values("val_accuracy", ascending=False)


def importance_table(table: pd.DataFrame, *, trials: int, evaluator: str) -> Table:
    """`importance` for the terminal."""
    names = {"fanova": "fANOVA", "ped-anova": "PED-ANOVA"}
    caption = f"{names[evaluator]} over {counted(trials)}; each column adds up to 1" + hint(trials)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    shown.add_column("parameter", no_wrap=True)
    for target in table.columns:
        shown.add_column(TARGETS[target], justify="right", no_wrap=True)
    for name, row in table.iterrows():
        shown.add_row(escape(str(name)), *(share_text(value) for value in row))
    return shown


def counted(trials: int) -> str:
    """How many of so many finished trials were weighed, in words."""
    return f"{MOST:,} of {trials:,} finished trials" if trials > MOST else f"{trials} finished trials"


def hint(trials: int) -> str:
    """What few trials are worth, in words; empty where there are enough."""
    return f"; so few trials give a hint, no finding ({FEW} and more do)" if trials < FEW else ""


def share_text(value: float) -> str:
    """`0.42`, or a dash where there is nothing to explain."""
    return f"{value:.2f}" if np.isfinite(value) else "-"


def _shares(frame: pd.DataFrame, varied: Sequence[str], target: str, evaluator: str, seed: int) -> dict[str, float]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

    rows = frame[np.isfinite(frame[target].astype(float))]
    if len(rows) < 4 or rows[target].nunique() < 2:
        return dict.fromkeys(varied, np.nan)
    quiet = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both evaluators are marked experimental
            how = FanovaImportanceEvaluator(seed=seed) if evaluator == "fanova" else PedAnovaImportanceEvaluator()
            study = _study(rows, varied, target)
            found = optuna.importance.get_param_importances(study, evaluator=how, params=list(varied))
    finally:
        optuna.logging.set_verbosity(quiet)
    return {name: float(value) for name, value in found.items()}


def _study(rows: pd.DataFrame, varied: Sequence[str], target: str) -> Any:
    """The trials as a study in memory; the best of a target is its largest accuracy or its smallest cost."""
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
    """A distribution that holds every value seen."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    values = _plain(column)
    if any(isinstance(value, bool | str) for value in values):
        return CategoricalDistribution(sorted(set(values), key=str))
    low, high = min(values), max(values)
    return FloatDistribution(low, high, log=low > 0 and high / low > LOG_SPREAD)


def _plain(column: "pd.Series[Any]") -> list[Any]:
    """Python's own values: numbers as float, all else as it is."""
    return [value if isinstance(value, bool | str) else float(value) for value in column.tolist()]
