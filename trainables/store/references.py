"""Who uses a store, the results that these sweeps refer to, and those that they need (no torch, no Ray).

A sweep needs the results of its front members and of every record that is not a searched trial: teacher, champions,
controls. All other results can be recomputed from the recipe in the trial's record. All of this is read from records:
what is drawn for people decides nothing.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.layout import CELLS, DRIVER_LOCK, IDENTITY, RECORD, REPLACED, SWEEP_JSON, TRIALS, UNFINISHED
from trainables.locks import is_locked
from trainables.records.encoding import UndecodableError, read_json
from trainables.records.trial import read_sweep_id
from trainables.store.inventory import LocalShelf, RemoteShelf, Shelf
from trainables.store.results import Store

LATENCY = "latency_p50_ms"
# Candidates compete only where these are equal, as in `analysis.findings.front`.
GROUPED_BY = ("dataset", "latency_device", "latency_runtime")


@dataclass(frozen=True)
class Reference:
    """The results in the store that one record refers to."""

    sweep: str
    keys: tuple[str, ...]
    needed: bool
    """Whether the sweep's outcome depends on them, and not only its history."""


def users(shelf: Shelf, where: str, *, forget: Collection[str] = ()) -> tuple[list[Path], list[str]]:
    """The folders of the sweeps that are noted as users of a store, and the notes about those that are to be forgotten.

    A sweep that was deleted from beside the store needs nothing any more.

    Args:
        shelf: the store, at `where`.
        forget: names of sweeps that are gone for good, wherever they were.

    Raises:
        ValueError: if one cannot be found from here, so that its needs are unknown.
    """
    found, gone = [], []
    for file, text in shelf.users().items():
        try:
            row = json.loads(text)
            name, folder, sweep_id = str(row["sweep"]), Path(row["folder"]), str(row["sweep_id"])
        except (RecursionError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"users/{file} of the store cannot be read, so who uses it is unknown; that sweep's own command writes"
                " it again, or remove the file."
            ) from None
        sweep = folder if folder.is_absolute() else Path(where) / folder
        if (sweep / IDENTITY).exists() and read_sweep_id(sweep) == sweep_id:
            found.append(sweep.resolve())
        elif name in forget:
            gone.append(file)
        elif folder.is_absolute():
            raise ValueError(
                f"sweep {name} uses this store, and its records in {folder} cannot be seen from here: collect where"
                f" they are or, if that sweep is gone for good, add --forget {name}."
            )
    return found, gone


def references(sweeps: Iterable[Path]) -> list[Reference]:
    """The references of every record of these sweeps.

    Raises:
        ValueError: if a finished record cannot be read or does not name its results, so that its needs are unknown.
    """
    return [reference for sweep in sweeps for reference in _of_sweep(sweep)]


def readable(sweeps: Iterable[Path]) -> Iterator[Reference]:
    """Like `references`, without the sweeps whose needs are unknown: for showing, not for collecting."""
    for sweep in sweeps:
        try:
            yield from _of_sweep(sweep)
        except ValueError:
            continue


def _of_sweep(sweep: Path) -> list[Reference]:
    paths = sorted((*sweep.glob(f"*/{RECORD}"), *sweep.glob(f"*/*/{RECORD}")))
    rows = {path: _record(path) for path in paths if path.relative_to(sweep).parts[0] != REPLACED}
    searched = {path: row for path, row in rows.items() if path.relative_to(sweep).parts[0] == TRIALS}
    front = _front(searched, _directions(sweep))
    found = []
    for path, row in rows.items():
        # what lies outside trials/ (teacher, champions, controls) is always needed
        needed = path not in searched or path in front or row.get("stage") != "candidate"
        # the cells of the table of runtimes are measured from a trial's own files
        if needed and row["status"] == "finished" and not row["keys"] and path.relative_to(sweep).parts[0] != CELLS:
            raise ValueError(
                f"{path} names no results (it is older than that), so what it needs is unknown: move that sweep away to"
                " collect here."
            )
        found.append(Reference(sweep.name, tuple(row["keys"]), needed))
    return found


def _directions(sweep: Path) -> Mapping[str, str] | None:
    """Column -> `minimize` or `maximize`; None if the sweep does not say, so that every trial may be on its front."""
    try:
        return dict(read_json(sweep / SWEEP_JSON)["directions"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _front(rows: Mapping[Path, Mapping[str, Any]], directions: Mapping[str, str] | None) -> set[Path]:
    """The trials that may be on the front, and those of which that cannot be told.

    The front pools latencies of one shape: a trial counts with the least of its shape, and its rivals with their most.
    """
    kept: set[Path] = set()
    groups: dict[tuple[str, ...], dict[Path, _Spread]] = {}
    for path, row in rows.items():
        if row["status"] != "finished":
            continue
        known = {**row.get("params", {}), **row.get("tags", {})}
        try:
            values = {name: float(row["metrics"][name]) for name in directions or ()}
        except (KeyError, TypeError, ValueError):
            values = {}
        if not values or any(value != value for value in values.values()):
            kept.add(path)
            continue
        assert directions is not None
        point = {name: -value if directions[name] == "maximize" else value for name, value in values.items()}
        group = groups.setdefault(tuple(str(known.get(name)) for name in GROUPED_BY), {})
        group[path] = _Spread(str(known.get("latency_shape", path)), point)
    for group in groups.values():
        kept |= _may_be_on_front(group)
    return kept


@dataclass(frozen=True)
class _Spread:
    """A trial's shape, and its objectives, all to be minimised."""

    shape: str
    point: Mapping[str, float]


def _may_be_on_front(group: Mapping[Path, _Spread]) -> set[Path]:
    latencies: dict[str, list[float]] = {}
    for one in group.values():
        latencies.setdefault(one.shape, []).append(one.point.get(LATENCY, 0.0))
    worst = {tuple({**one.point, LATENCY: max(latencies[one.shape])}.values()) for one in group.values()}
    front: list[tuple[float, ...]] = []
    for point in sorted(worst):  # a point is dominated by earlier ones alone
        if not any(_is_as_good(other, point) for other in front):
            front.append(point)
    best = {path: tuple({**one.point, LATENCY: min(latencies[one.shape])}.values()) for path, one in group.items()}
    return {path for path, point in best.items() if not any(p != point and _is_as_good(p, point) for p in front)}


def _is_as_good(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))


def unfinished(sweeps: Iterable[Path]) -> bool:
    """Whether a sweep was interrupted: results that no record names may belong to trials that will resume."""
    return any((sweep / UNFINISHED).exists() for sweep in sweeps)


def running(sweeps: Iterable[Path]) -> list[str]:
    """The names of the sweeps whose driver is running: they may need any result."""
    return [sweep.name for sweep in sweeps if (sweep / DRIVER_LOCK).exists() and is_locked(sweep / DRIVER_LOCK)]


def forget_failures(store: Store) -> None:
    """Let the keys be tried again that a store remembers to fail, here and below its URL."""
    LocalShelf(store.here).forget_failures()
    if isinstance(store.root, str):
        RemoteShelf(store.root).forget_failures()


def _record(path: Path) -> dict[str, Any]:
    try:
        row = dict(read_json(path))
        return {**row, "status": str(row["status"]), "keys": [str(key) for key in row.get("keys", ())]}
    except UndecodableError as error:
        raise ValueError(f"{error}; what it needs is unknown: that sweep's own command makes it again.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks {error}, so what it needs is unknown; move that sweep away.") from error
