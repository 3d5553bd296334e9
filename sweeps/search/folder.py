"""The folder OUT/sweeps/NAME of a sweep: one driver at a time, one identity, one description."""

import errno
import json
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution

from sweeps.search.config import SweepConfig
from sweeps.search.objectives import DIRECTIONS, UNITS, reference_point
from sweeps.search.space import describe
from sweeps.search.study_file import contains, holds, write_anew
from trainables.config.candidate import CandidateConfig
from trainables.config.flags import ENTRY_POINTS
from trainables.files import set_aside, write_text
from trainables.layout import CHECKOUT, COMMANDS, DRIVER_LOCK, IDENTITY, JOURNAL, SWEEP_JSON
from trainables.locks import file_lock_if_free
from trainables.records.encoding import read_json, to_json
from trainables.records.stages import DatasetRecord
from trainables.records.trial import TrialRecord
from trainables.stages.data.prepared import public_name

# Flags with paths and addresses: private, and no part of a sweep's settings. They stay out of recorded commands.
PLACES = ("--out", "--data-dir", "--tracking-uri", "--storage", "--address")


# What a setting was in sweeps that are older than it.
DEFAULTS: Mapping[str, Any] = MappingProxyType(CandidateConfig().flat())


class InputError(ValueError):
    """The sweep cannot run with these settings; the message is for the user."""


class NoRoomError(OSError):
    """A trial found a disk full."""


def no_room(path: str) -> NoRoomError:
    """The error for a full disk under `path`."""
    return NoRoomError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def check_free(folder: Path) -> None:
    """Refuse a sweep that another process runs, before anything is timed beside it.

    Raises:
        InputError: if another process runs it.
    """
    if (folder / DRIVER_LOCK).exists():
        with sole_driver(folder):
            return


@contextmanager
def sole_driver(folder: Path) -> Generator[None, None, None]:
    """Hold the sweep's lock: with two drivers on one study, each would take the other's trials for orphans.

    Raises:
        InputError: if another process holds it.
    """
    with file_lock_if_free(folder / DRIVER_LOCK) as free:
        if not free:
            raise InputError(
                f"--name {folder.name}: another process runs this sweep; wait for it or take another --name."
            )
        yield


def check_identity(config: SweepConfig, dataset: DatasetRecord) -> str:
    """Check that the folder belongs to this sweep, or make it so; returns the sweep's id.

    One name stands for one search on one data set, so that numbers of different searches never mix. The space may have
    grown and the objective changed: then the study is rewritten.

    Raises:
        InputError: if the folder belongs to a sweep with other settings or images.
    """
    path = config.folder / IDENTITY
    # Through JSON, so that tuples and paths compare equal to what was read back.
    images = {"fingerprint of the images": dataset.fingerprint[:16]}
    images |= {"digest of the images without labels": dataset.unlabeled} if dataset.unlabeled else {}
    mine = json.loads(to_json(config.identity() | {"images": images}))
    spaces = {name: distribution_to_json(values) for name, values in config.search.space.items()}
    if not path.exists():
        sweep_id = uuid.uuid4().hex
        write_text(path, to_json({"sweep_id": sweep_id, "settings": mine, "space": spaces}))
        return sweep_id
    stored = read_identity(path, config.name)
    theirs = stored["settings"]
    grown = _sound_changes(config, theirs, stored.get("space", {}))
    for part in mine | theirs:
        old, new = theirs.get(part, {}), mine.get(part, {})
        for name in old | new:
            before = old.get(name, DEFAULTS.get(name) if part == "base" else None)
            if before != new.get(name) and name not in grown:
                raise InputError(
                    f"--name {config.name}: that sweep was made with {name}={before}, not {new.get(name)};"
                    " take another --name."
                )
    if grown:
        fixed = {name: theirs["base"][name] for name in config.search.space if name in theirs["base"]}
        journal = config.folder / JOURNAL
        # The journal first: after a crash in between, the next start finds the old identity and rewrites it again.
        write_anew(journal, config.name, config.search, fixed=fixed)
        write_text(path, to_json({"sweep_id": stored["sweep_id"], "settings": mine, "space": spaces}))
    return str(stored["sweep_id"])


def read_identity(path: Path, name: str) -> dict[str, Any]:
    """What a sweep's identity.json says.

    Raises:
        InputError: if it is damaged.
    """
    try:
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        settings = {part: dict(values) for part, values in row["settings"].items()}
        spaces = {name: str(values) for name, values in row.get("space", {}).items()}
        for values in spaces.values():
            json_to_distribution(values)
        return {"settings": settings, "space": spaces, "sweep_id": str(row["sweep_id"])}
    except (RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--name {name}: {path} cannot be read ({error}); restore it, or take another --name."
        ) from None


def _sound_changes(config: SweepConfig, theirs: Mapping[str, Any], spaces: Mapping[str, str]) -> set[str]:
    """Settings that differ from the sweep's original ones, in ways that keep its earlier trials valid."""
    objective = {"objective"} if theirs.get("objective", {}) != {"objective": config.search.objective} else set()
    grown = objective & set(theirs.get("objective", {}))
    fixed = theirs.get("base", {})
    for name, new in config.search.space.items():
        if name in spaces:
            old = json_to_distribution(spaces[name])
            grown |= {name} if new != old and holds(new, old) else set()
        elif name in fixed and fixed[name] is not None and contains(new, fixed[name]):
            grown.add(name)
    return grown


def write_sweep_json(config: SweepConfig, teacher: TrialRecord, dataset: DatasetRecord) -> None:
    """Write sweep.json, which describes the sweep; its reference point is fixed here, before the first trial."""
    path = config.folder / SWEEP_JSON
    settings = config.identity() | {"space": describe(config.search.space)}
    settings["base"] |= {"dataset": dataset.name, "unlabeled": dataset.unlabeled}
    if (before := _read_sweep_json(path)) is not None:
        if before["config"] != json.loads(to_json(settings)):  # the space has grown; the reference point stays
            write_text(path, to_json(before | {"config": settings}))
        return
    content = {
        "name": config.name,
        "directions": DIRECTIONS,
        "units": UNITS,
        "reference_point": reference_point(dataset.num_classes),
        "teacher": dict(teacher.metrics),
        "config": settings,
        "versions": versions(),
        "commit": _commit(),
        "command": typed_command(sys.argv),
    }
    write_text(path, to_json(content))


def _read_sweep_json(path: Path) -> dict[str, Any] | None:
    """What is written there; None if nothing is, or a damaged file had to be set aside."""
    try:
        row = read_json(path)
        return {**row, "config": dict(row["config"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        set_aside(path)
        return None


def typed_command(argv: Sequence[str]) -> str | None:
    """The command as typed, without paths and addresses; None if a program called our `main`."""
    script = Path(argv[0])
    if script.name in ENTRY_POINTS.values():
        return shlex.join([script.name, *public_words(argv[1:])])
    if script.resolve().parent != COMMANDS.resolve():
        return None
    return shlex.join(["python", f"sweeps/{script.name}", *public_words(argv[1:])])


def public_words(words: Sequence[str]) -> list[str]:
    """The words of a command without paths and addresses, some of which contain passwords."""
    told: list[str] = []
    given = iter(words)
    for word in given:
        flag, equals, value = word.partition("=")
        if flag in PLACES:
            if not equals:
                next(given, None)
        elif flag == "--dataset" and equals:
            told.append(f"{flag}={public_name(value)}")
        elif flag == "--unlabeled":
            told += [flag, Path(value if equals else next(given, "")).resolve().name]
        else:
            told.append(public_name(word))
    return told


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    names = ("torch", "torchvision", "torch-pruning", "onnx", "ray", "optuna", "mlflow", "numpy")
    extras = [name for name in ("timm", "datasets") if find_spec(name) is not None]
    return {name: version(name) for name in (*names, *extras)}


def _commit() -> str | None:
    """The commit of the running code; None outside a git checkout."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
