"""The results in the store that the sweeps on disk refer to, and those that they need (no torch, no Ray).

A sweep needs the results of its front members and of every record that is not a searched trial: teacher, champions,
controls. All other results can be recomputed from the recipe in the trial's record.
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
    """The results in the store that one record refers to."""

    sweep: str
    keys: tuple[str, ...]
    needed: bool
    """Whether the sweep's outcome depends on them, and not only its history."""


def references(sweeps: Path) -> list[Reference]:
    """The references of every record below `OUT/sweeps`.

    A sweep without a front, or with trials newer than its front, needs all of its trials.

    Raises:
        ValueError: if a finished record cannot be read or does not name its results, so that its needs are unknown.
    """
    found = []
    for path in sorted((*sweeps.glob(f"*/*/{RECORD}"), *sweeps.glob(f"*/*/*/{RECORD}"))):
        sweep = sweeps / path.relative_to(sweeps).parts[0]
        searched = path.relative_to(sweep).parts[0] == TRIALS
        row = _record(path)
        front = _front(sweep) if searched else None
        # None also for records outside trials/ (teacher, champions, controls): those are always needed
        needed = front is None or row.get("trial_number") in front or row.get("stage") != "candidate"
        if row.get("status") == "finished" and not row.get("keys") and needed:
            raise ValueError(f"{path} names no results (it is older than that): `gc --all` alone can collect here.")
        found.append(Reference(sweep.name, tuple(row.get("keys", ())), needed))
    return found


def _front(sweep: Path) -> set[int] | None:
    """The trial numbers of a sweep's front; None if there is no front, or newer trials may belong to it."""
    path = sweep / FRONT / FRONT_TABLE
    if not path.exists():
        return None
    drawn = path.stat().st_mtime_ns
    if any((trial / RECORD).stat().st_mtime_ns > drawn for trial in recorded(sweep / TRIALS)):
        return None
    return front_numbers(path)


def front_numbers(path: Path) -> set[int] | None:
    """The trial numbers in a sweep's `pareto.csv`; None if the file does not exist.

    Raises:
        ValueError: if it has no column `trial_number`.
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
    """Whether a sweep was interrupted: results that no record names may belong to trials that will resume."""
    return any(sweeps.glob(f"*/{UNFINISHED}"))


def running(sweeps: Path) -> list[str]:
    """The names of the sweeps whose driver is running: they may need any result."""
    return [path.parent.name for path in sorted(sweeps.glob(f"*/{DRIVER_LOCK}")) if is_locked(path)]


def _record(path: Path) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**row}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}), so what it needs is unknown.") from error
