"""What distillation and pruning were worth: champions trained again with more seeds, beside their control arms."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit

CHAMPION = "champion"
WORTH = {
    "no_distillation": "Distillation",
    "from_scratch": "Pruning a trained student, over training the pruned shape from scratch,",
    "not_pruned": "Pruning",
}
"""Control arm -> what the champion has and the arm lacks."""
KEY = r"/champions/(?P<champion>\d+)-(?P<arm>[a-z_]+)-seed(?P<seed>\d+)$"
SPLITS = ("val_accuracy", "test_accuracy")


def controls(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per champion and arm, the teacher last; empty without finished champions' runs.

    Columns: `champion` (trial number), `arm`, `n` (seeds), mean and standard deviation (n - 1) of `val_accuracy` and
    `test_accuracy` (0 to 1), and for a control arm what the champion has over it in points of test accuracy:
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
    teacher = frame[(frame["stage"] == "teacher") & (frame["status"] == "finished")]
    if len(teacher):
        table = pd.concat([table, pd.DataFrame([_summary("teacher", teacher)])], ignore_index=True)
    return table


def interval_95(values: npt.ArrayLike) -> tuple[float, float, float]:
    """Mean of n values and the bounds of its 95 % interval, mean -+ t(0.975, n - 1) * s / sqrt(n).

    Student (Biometrika 6(1), 1908); assumes independent, roughly normal values, which a few seeds cannot check. With
    fewer than two values the bounds are NaN.

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
    """The sentence for a person: what `subject` was worth, or that n pairs cannot tell.

    Args:
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


def write_controls(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write controls.csv, if there is anything to say; returns what was written."""
    if table.empty:
        return []
    path = folder / "controls.csv"
    table.convert_dtypes().to_csv(path, index=False)
    return [path]


def print_controls(console: Console, table: pd.DataFrame) -> None:
    """The arms as a table, then a sentence for every comparison; nothing if there are no arms."""
    if table.empty:
        return
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title="Champions and controls")
    for header in ("trial", "arm"):
        shown.add_column(header, no_wrap=True)
    for header in ("n", "val %\nmean", "sd", "test %\nmean", "sd"):
        shown.add_column(header, justify="right", no_wrap=True)
    for _, row in table.iterrows():
        trial = "" if pd.isna(row["champion"]) else f"{row['champion']:.0f}"
        numbers = [_percent(row[f"{split}_{what}"]) for split in SPLITS for what in ("mean", "std")]
        shown.add_row(trial, row["arm"].replace("_", " "), str(row["n"]), *numbers)
    console.print(shown)
    for _, row in table[table["verdict"].notna()].iterrows():
        console.print(f"Trial {row['champion']:.0f}: {row['verdict']}", markup=False)


def _champion_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Finished runs of known arms with their champion's trial number, arm and seed, out of their keys."""
    finished = frame[(frame["status"] == "finished") & (frame["stage"] == "candidate") & frame["control"].notna()]
    if finished.empty:
        return finished
    names = finished["key"].str.extract(KEY)
    runs = pd.concat([finished[list(SPLITS)], names], axis=1)
    runs = runs[runs["arm"].isin([CHAMPION, *WORTH])]
    return runs.astype({"champion": "int64", "seed": "int64"})


def _summary(arm: str, group: pd.DataFrame) -> dict[str, object]:
    row: dict[str, object] = {"arm": arm, "n": len(group)}
    for split in SPLITS:
        row |= {f"{split}_mean": group[split].mean(), f"{split}_std": group[split].std(ddof=1)}
    return row


def _worth(own: pd.DataFrame, arm: str) -> dict[str, object]:
    """What a champion has over one of its arms, paired over seeds; without numbers for itself."""
    if arm == CHAMPION:
        return {"worth_points": np.nan, "worth_low": np.nan, "worth_high": np.nan, "worth_n": None, "verdict": None}
    by_seed = own.pivot(index="seed", columns="arm", values="test_accuracy").reindex(columns=[CHAMPION, arm]).dropna()
    pairs = 100 * (by_seed[CHAMPION] - by_seed[arm]).to_numpy(dtype=np.float64)
    interval = interval_95(pairs)
    return {
        **dict(zip(("worth_points", "worth_low", "worth_high"), interval, strict=True)),
        "worth_n": len(pairs),
        "verdict": verdict(WORTH[arm], interval, len(pairs)),
    }


def _percent(share: float) -> str:
    return "-" if pd.isna(share) else f"{100 * share:.2f}"
