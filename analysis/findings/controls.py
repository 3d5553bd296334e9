"""What distillation and pruning were worth: champions retrained with more seeds, compared with their control arms."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from analysis.reading.rows import finished_runs

CHAMPION = "champion"
WORTH = {
    "no_distillation": "Distillation",
    "from_scratch": "Pruning a trained student, over training the pruned shape from scratch,",
    "not_pruned": "Pruning",
}
"""Control arm -> what the champion has and the arm lacks."""
# The end of a retrained run's key, such as `night/champions/7-from_scratch-seed2`.
KEY = r"/champions/(?P<champion>\d+)-(?P<arm>[a-z_]+)-seed(?P<seed>\d+)$"
SPLITS = ("val_accuracy", "test_accuracy")


def controls(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per champion and arm, the teacher last; empty if no retrained run has finished.

    Columns: `champion` (trial number), `arm`, `n` (seeds), mean and standard deviation (n - 1) of `val_accuracy` and
    `test_accuracy` (0 to 1). A control arm also has the champion's lead over it in points of test accuracy:
    `worth_points`, its 95 % interval `worth_low` to `worth_high`, `worth_n` pairs of equal seed, and `verdict`.
    The interval covers training seeds alone: split, test images and teacher are the same in all runs.

    Args:
        frame: one row per run with the tags `key`, `status`, `stage` and `control` (`analysis.reading.runs`).
    """
    runs = _champion_runs(frame)
    if runs.empty:
        return pd.DataFrame()
    rows = [
        {"champion": champion, **_summary(arm, own[own["arm"] == arm]), **_worth(own, arm)}
        for champion, own in runs.groupby("champion")
        for arm in (CHAMPION, *WORTH)
        if (own["arm"] == arm).any()
    ]
    table = pd.DataFrame(rows)
    teacher = finished_runs(frame, "teacher")
    if len(teacher):
        table = pd.concat([table, pd.DataFrame([_summary("teacher", teacher)])], ignore_index=True)
    return table


def interval_95(values: npt.ArrayLike) -> tuple[float, float, float]:
    """Mean of n values and the bounds of its 95 % interval, mean -+ t(0.975, n - 1) * s / sqrt(n).

    Student (Biometrika 6(1), 1908). It assumes independent, roughly normal values, which a few seeds cannot confirm.
    With fewer than two values the bounds are NaN.

    Example:
        >>> [round(bound, 3) for bound in interval_95([1.0, 2.0, 3.0])]
        [2.0, -0.484, 4.484]
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean()) if len(array) else math.nan
    if len(array) < 2:
        return mean, math.nan, math.nan
    half = float(stdtrit(len(array) - 1, 0.975)) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return mean, mean - half, mean + half


def verdict(subject: str, interval: Sequence[float], n: int) -> str:
    """What `subject` was worth, in one sentence, or that n pairs cannot tell.

    Args:
        subject: a value of `WORTH`.
        interval: mean, low and high, points of test accuracy.
        n: pairs of equal seed.
    """
    mean, low, high = interval
    if n == 0:
        return f"{subject} cannot be judged: no seed has finished in both arms (n = 0)."
    if n == 1:
        return f"{subject} made a difference of {mean:+.2f} points of test accuracy; n = 1 gives no interval."
    between = f"95 % interval {low:+.2f} to {high:+.2f}"
    if low <= 0 <= high:
        found = f"{mean:+.2f} points of test accuracy, {between}"
        return f"{subject} was worth nothing that n = {n} can tell from zero ({found})."
    did = "was worth" if mean > 0 else "cost"
    return f"{subject} {did} {abs(mean):.2f} points of test accuracy ({between}, n = {n})."


def _champion_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Finished runs of known arms, with champion, arm and seed as their keys name them."""
    candidates = finished_runs(frame)
    retrained = candidates[candidates["control"].notna()]
    if retrained.empty:
        return retrained
    names = retrained["key"].str.extract(KEY)
    runs = pd.concat([retrained[list(SPLITS)], names], axis=1)
    runs = runs[runs["arm"].isin([CHAMPION, *WORTH])]
    return runs.astype({"champion": "int64", "seed": "int64"})


def _summary(arm: str, group: pd.DataFrame) -> dict[str, object]:
    row: dict[str, object] = {"arm": arm, "n": len(group)}
    for split in SPLITS:
        row |= {f"{split}_mean": group[split].mean(), f"{split}_std": group[split].std(ddof=1)}
    return row


def _worth(own: pd.DataFrame, arm: str) -> dict[str, object]:
    """The champion's lead over one of its arms, paired by seed; no numbers for the champion itself."""
    if arm == CHAMPION:
        return {"worth_points": np.nan, "worth_low": np.nan, "worth_high": np.nan, "worth_n": None, "verdict": None}
    # Runs of one seed share its random draws: their difference varies less than that of any two runs.
    by_seed = own.pivot(index="seed", columns="arm", values="test_accuracy").reindex(columns=[CHAMPION, arm]).dropna()
    pairs = 100 * (by_seed[CHAMPION] - by_seed[arm]).to_numpy(dtype=np.float64)
    interval = interval_95(pairs)
    return {
        **dict(zip(("worth_points", "worth_low", "worth_high"), interval, strict=True)),
        "worth_n": len(pairs),
        "verdict": verdict(WORTH[arm], interval, len(pairs)),
    }
