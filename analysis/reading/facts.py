"""What a picture says in words: titles, units, devices, intervals."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

MB = 1e6
"""Bytes; megabytes are decimal everywhere."""


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


def plain_number(value: Any) -> str:
    """`20` for 20.0, `0.0003` for 3e-4; other values as Python prints them."""
    return f"{value:g}" if isinstance(value, float) else str(value)
