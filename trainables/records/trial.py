"""What a trial leaves in its folder for MLflow (standard library only)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.layout import RECORD
from trainables.records.encoding import read_record
from trainables.records.stages import EpochRecord


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What a trial leaves in its folder for MLflow: the outbox. Metrics are finite numbers, never placeholders."""

    key: str
    """`SWEEP/00012`; the name under which it is delivered once."""
    trial_number: int | None
    """Of the Optuna study; None for the teacher."""
    stage: str
    """`candidate` or `teacher`."""
    status: str
    """`finished`, `stopped`, `infeasible` or `failed`."""
    reason: str
    """Why it did not finish; empty if it did."""
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    """Words about the result: the device and provider of its latency."""
    curve: tuple[EpochRecord, ...]
    files: tuple[str, ...]
    """Names of the artifacts beside the record."""
    started: float
    """Unix time, seconds."""
    ended: float
    keys: tuple[str, ...] = ()
    """What the store holds for it; a collector keeps that while the trial is wanted."""


def read_trial(folder: Path) -> TrialRecord:
    """The `TrialRecord` that a trial wrote into its folder."""
    record = read_record(TrialRecord, folder)
    if any(Path(name).name != name for name in record.files):
        raise ValueError(f"{folder / RECORD} names files outside its folder: {list(record.files)}.")
    return record
