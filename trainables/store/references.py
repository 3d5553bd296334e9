"""Which results of the store the sweeps on disk refer to, and which of them they need (no torch, no Ray).

Needed are the results of front members, and of every record of a sweep that is not a searched trial: teacher,
champions, controls. All others can be made again: each trial's record holds its recipe.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.layout import DRIVER_LOCK, FRONT, FRONT_TABLE, RECORD, TRIALS, UNFINISHED, recorded
from trainables.locks import is_locked


@dataclass(frozen=True)
class Reference:
    """One record's results in the store."""

    sweep: str
    keys: tuple[str, ...]
    needed: bool
    """Whether the sweep's outcome needs it, rather than its history alone."""


def references(sweeps: Path) -> list[Reference]:
    """Of every record below `OUT/sweeps`.

    A sweep that has trials younger than its front, or no front yet, needs all of its trials.

    Raises:
        ValueError: if a finished record cannot be read or does not name its results: what is needed is unknown then.
    """
    found = []
    for path in sorted((*sweeps.glob(f"*/*/{RECORD}"), *sweeps.glob(f"*/*/*/{RECORD}"))):
        sweep = sweeps / path.relative_to(sweeps).parts[0]
        searched = path.relative_to(sweep).parts[0] == TRIALS
        row = _record(path)
        front = _front(sweep) if searched else None
        needed = front is None or row.get("trial_number") in front or row.get("stage") != "candidate"
        if row.get("status") == "finished" and not row.get("keys") and needed:
            raise ValueError(f"{path} names no results (it is older than that): `gc --all` alone can collect here.")
        found.append(Reference(sweep.name, tuple(row.get("keys", ())), needed))
    return found


def _front(sweep: Path) -> set[int] | None:
    """Trial numbers of a sweep's front; None if nobody knows it yet."""
    path = sweep / FRONT / FRONT_TABLE
    if not path.exists():
        return None
    drawn = path.stat().st_mtime_ns
    if any((trial / RECORD).stat().st_mtime_ns > drawn for trial in recorded(sweep / TRIALS)):
        return None
    return front_numbers(path)


def front_numbers(path: Path) -> set[int] | None:
    """Trial numbers in a sweep's `pareto.csv`; None if there is none.

    Raises:
        ValueError: if it has no column of trial numbers.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {int(float(row["trial_number"])) for row in rows if row["trial_number"]}
    except FileNotFoundError:
        return None
    except KeyError:
        raise ValueError(f"{path} has no column `trial_number`, so what the front needs is unknown.") from None


def unfinished(sweeps: Path) -> bool:
    """Whether a sweep was interrupted: results that no record names may be those of trials that will go on."""
    return any(sweeps.glob(f"*/{UNFINISHED}"))


def running(sweeps: Path) -> list[str]:
    """Names of the sweeps whose driver is alive: they may need any result."""
    return [path.parent.name for path in sorted(sweeps.glob(f"*/{DRIVER_LOCK}")) if is_locked(path)]


def _record(path: Path) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**row}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}), so what it needs is unknown.") from error
