"""What a picture says in words: titles, units, devices, intervals."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

MB = 1e6
"""Bytes; megabytes are decimal everywhere."""
LOG_SPREAD = 8.0
"""Latencies that differ by more than this factor are drawn on a log axis."""


def first_known(name: str, frame: pd.DataFrame, sweep: Mapping[str, Any]) -> Any:
    """The value of a fact: from the rows, else from the teacher or the config of `sweep.json`; None if nobody knows."""
    if name in frame.columns and frame[name].notna().any():
        return frame[name].dropna().iloc[0]
    config = sweep.get("config") or {}
    for part in (sweep.get("teacher") or {}, config, config.get("base") or {}):
        if part.get(name) is not None:
            return part[name]
    return None


def dataset_of(frame: pd.DataFrame, sweep: Mapping[str, Any]) -> str:
    """The data set's name; a folder by its last part only."""
    dataset = str(first_known("dataset", frame, sweep) or "data set not recorded")
    return f"folder:{dataset.rstrip('/').rsplit('/', 1)[-1]}" if "/" in dataset else dataset


def images_of(split: str, frame: pd.DataFrame, sweep: Mapping[str, Any]) -> str:
    """How many images an accuracy stands on: `validation, n = 5,000`."""
    count = first_known(f"num_{split}", frame, sweep)
    name = {"val": "validation", "test": "test"}[split]
    return f"{name}, n = {int(count):,}" if count else f"{name}, n not recorded"


def device_of(frame: pd.DataFrame, sweep: Mapping[str, Any]) -> str:
    """What the latencies were taken on."""
    device = first_known("latency_device", frame, sweep)
    threads = first_known("latency_threads", frame, sweep)
    if device:
        return str(device)
    return f"{int(threads)} thread{'s' if int(threads) > 1 else ''}" if threads else "device not recorded"


def row_of(frame: pd.DataFrame, run_id: object) -> "pd.Series[Any]":
    """The one row of a run."""
    return frame.loc[[run_id]].iloc[0]


def trial_label(row: "pd.Series[Any] | Mapping[str, Any]") -> str:
    """`teacher` or `trial 12`; of several sweeps `night 12`."""
    if row["stage"] == "teacher":
        return "teacher"
    label = row.get("label")
    return label if isinstance(label, str) else f"trial {int(row['trial_number'])}"


def merged_names(variants: Mapping[str, str]) -> dict[str, str]:
    """Run id -> the names it goes by, so that one candidate is shown once.

    Example:
        >>> merged_names({"most_accurate": "r1", "fastest": "r2", "smallest": "r2"})
        {'r1': 'most accurate', 'r2': 'fastest, smallest'}
    """
    merged: dict[str, str] = {}
    for name, run_id in variants.items():
        words = name.replace("_", " ")
        merged[run_id] = f"{merged[run_id]}, {words}" if run_id in merged else words
    return merged


def half_width_95(accuracy: float, count: float) -> float:
    """Half of Wilson's 95 % interval of an accuracy in [0, 1] over `count` images; NaN without a count.

    Example:
        >>> round(half_width_95(0.9, 10_000), 4)
        0.0059
    """
    if not (count > 0 and math.isfinite(accuracy)):
        return math.nan
    z = 1.96
    return z / (1 + z**2 / count) * math.sqrt(accuracy * (1 - accuracy) / count + z**2 / (4 * count**2))


def needs_log_axis(values: npt.ArrayLike) -> bool:
    """True when the largest value is more than `LOG_SPREAD` times the smallest."""
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    return bool(len(array) and array.min() > 0 and array.max() / array.min() > LOG_SPREAD)


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a log axis: 1, 2, 3 and 5 times the powers of ten between `low` and `high`.

    Example:
        >>> log_ticks(0.4, 4)
        [0.5, 1.0, 2.0, 3.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{power}") for power in powers for step in (1, 2, 3, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def plain_number(value: Any) -> str:
    """`20` for 20.0, `0.0003` for 3e-4; other values as Python prints them."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def staircase(latency: npt.ArrayLike, accuracy: npt.ArrayLike, end: float) -> tuple[list[float], list[float]]:
    """The best accuracy within a latency: corners of a step line, drawn on to the latency `end`.

    Example:
        >>> staircase([1.0, 2.0, 3.0], [0.5, 0.4, 0.9], end=4.0)
        ([1.0, 3.0, 3.0, 4.0], [0.5, 0.5, 0.9, 0.9])
    """
    xs: list[float] = []
    ys: list[float] = []
    pairs = sorted(zip(np.asarray(latency).tolist(), np.asarray(accuracy).tolist(), strict=True))
    for x, y in pairs:
        if ys and y <= ys[-1]:
            continue
        if ys:
            xs.append(x)
            ys.append(ys[-1])
        xs.append(x)
        ys.append(y)
    return [*xs, max(end, xs[-1])] if xs else [], [*ys, ys[-1]] if ys else []
