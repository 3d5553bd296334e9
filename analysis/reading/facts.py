"""Facts about a sweep as a whole: its data set, its image counts, the device its latencies were measured on."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from trainables.config.candidate import TEACHER_ITSELF


def first_known(name: str, frame: pd.DataFrame, sweep: Mapping[str, Any]) -> Any:
    """The value of a fact: from the rows, else from the teacher or the config in `sweep.json`, else None."""
    if name in frame.columns and frame[name].notna().any():
        return frame[name].dropna().iloc[0]
    config = sweep.get("config") or {}
    for part in (sweep.get("teacher") or {}, config, config.get("base") or {}):
        if part.get(name) is not None:
            return part[name]
    return None


def models_of(frame: pd.DataFrame, sweep: Mapping[str, Any]) -> str | None:
    """`resnet18 to mobilenet_v3_small`, every student named; None if the models were not recorded."""
    teacher = first_known("teacher_model", frame, sweep)
    known = frame["student_model"].dropna().unique().tolist() if "student_model" in frame.columns else []
    students = known or [first_known("student_model", frame, sweep)]
    if teacher is None or None in students:
        return None
    named = ("copies of itself" if name == TEACHER_ITSELF else str(name) for name in students)
    return f"{teacher} to {' or '.join(named)}"


def dataset_of(frame: pd.DataFrame, sweep: Mapping[str, Any]) -> str:
    """The data set's name; a folder goes by the last part of its path."""
    dataset = str(first_known("dataset", frame, sweep) or "data set not recorded")
    # The rest of the path names users and machines: it does not belong on a page that is passed on.
    if "/" not in dataset or dataset.startswith("hf:"):  # a name on the hub, or one that has no path any more
        return dataset
    return f"folder:{dataset.rstrip('/').rsplit('/', 1)[-1]}"


def images_of(split: str, frame: pd.DataFrame, sweep: Mapping[str, Any]) -> str:
    """How many images an accuracy was measured on: `validation, n = 5,000`."""
    count = first_known(f"num_{split}", frame, sweep)
    name = {"val": "validation", "test": "test"}[split]
    return f"{name}, n = {int(count):,}" if count else f"{name}, n not recorded"


def stood_still(frame: pd.DataFrame, busy_s: float) -> str | None:
    """How long trials paused for measurements, in words; None if that was not recorded.

    Args:
        busy_s: seconds in which a trial ran.
    """
    if "latency_alone_s" not in frame.columns or not busy_s > 0:
        return None
    alone_s = float(frame["latency_alone_s"].sum())
    return f"measuring: trials stood still for {alone_s:,.1f} s, {100 * alone_s / busy_s:.1f} % of the sweep"


def device_of(frame: pd.DataFrame, sweep: Mapping[str, Any]) -> str:
    """The device that the latencies were measured on."""
    device = first_known("latency_device", frame, sweep)
    if device:
        return str(device)
    threads = first_known("latency_threads", frame, sweep)  # old records name no device
    return f"{int(threads)} thread{'s' if int(threads) > 1 else ''}" if threads else "device not recorded"
