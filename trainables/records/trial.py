"""The record that a trial writes into its folder, for delivery to MLflow (standard library only)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.files import set_aside
from trainables.layout import DELIVERED, IDENTITY, RECORD
from trainables.records.encoding import UndecodableError, read_json, read_record
from trainables.records.stages import EpochRecord


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """The result of a trial, waiting in its folder for MLflow. Metrics are finite numbers, never placeholders."""

    key: str
    """`SWEEP/00012`; delivery uses it to create each MLflow run only once."""
    trial_number: int | None
    """Number in the Optuna study; None for the teacher."""
    stage: str
    """`candidate` or `teacher`."""
    status: str
    """`finished`, `stopped`, `infeasible` or `failed`."""
    reason: str
    """Why it did not finish; empty if it did."""
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    """Texts about the result, such as the device and provider of its latency."""
    curve: tuple[EpochRecord, ...]
    files: tuple[str, ...]
    """Names of the artifacts beside the record."""
    started: float
    """Unix time, seconds."""
    ended: float
    keys: tuple[str, ...] = ()
    """Store keys of its results; garbage collection keeps them while the trial is needed."""
    sweep_id: str = ""
    """Id of its sweep, because names may repeat; records of earlier versions have none."""


def read_trial(folder: Path) -> TrialRecord:
    """Read the `TrialRecord` that a trial wrote into its folder.

    Raises:
        ValueError: if the record is damaged, or names a file outside the folder or a link.
    """
    record = read_record(TrialRecord, folder)
    # records travel between machines and their files are uploaded: `../secret` must not be
    if any(Path(name).name != name for name in record.files):
        raise ValueError(f"{folder / RECORD} names files outside its folder: {list(record.files)}.")
    if links := [name for name in record.files if (folder / name).is_symlink()]:
        raise ValueError(f"{folder / links[0]} is a link, and so may lie outside its folder.")
    return record


def read_sweep_id(sweep: Path) -> str:
    """The id of the sweep in a folder.

    Raises:
        FileNotFoundError: if no sweep has begun there.
        UndecodableError: naming the file, if it is damaged.
    """
    path = sweep / IDENTITY
    try:
        return str(read_json(path)["sweep_id"])
    except (UndecodableError, KeyError, TypeError):
        raise UndecodableError(f"{path} is damaged, so whose records lie there is unknown; restore it.") from None


def read_delivered(folder: Path) -> Mapping[str, Any]:
    """What `delivered.json` says: `run_id`, `parent_id`, `record`; empty if it is missing or damaged."""
    try:
        row = read_json(folder / DELIVERED)
    except (FileNotFoundError, UndecodableError):
        return {}
    return row if isinstance(row, dict) else {}


def set_damaged_aside(folders: Iterable[Path]) -> list[Path]:
    """Rename the records in these folders that cannot be read, so that they are made again; returns their new paths."""
    aside = []
    for folder in folders:
        try:
            read_trial(folder)
        except UndecodableError:
            aside.append(set_aside(folder / RECORD))
    return aside
