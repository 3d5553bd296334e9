"""Folders of a store on this disk: content, integrity, progress and layout format (no torch, no Ray)."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from trainables.files import set_aside, write_text
from trainables.layout import RECORD, STORE, SWEEPS, out_of
from trainables.records.encoding import to_json
from trainables.store.manifest import (
    FORMAT,
    MANIFEST,
    STAGE_NAME,
    Manifest,
    describe,
    fault,
    is_scratch,
    other_format,
    parse,
)
from trainables.store.objects import Objects
from trainables.store.remote import PARTIAL, Remote

log = logging.getLogger(__name__)

FORMAT_FILE = "store.json"  # marks a folder or prefix as a store
USERS = "users"  # one file for every sweep that has opened the store
PROGRESS = ".progress.json"
# What the store puts into the folder of a stage: a result, or DIGEST.partial and the like beside it.
OWN_NAME = re.compile(
    r"(?P<digest>[0-9a-f]{16,64})"
    r"(\.partial|\.download|\.partial\.download|\.removed|\.corrupt-\d+|\.lock|\.failed\.json(\.corrupt-\d+)?)?"
)


class Progress(TypedDict):
    """Progress of unfinished work: compute seconds so far, and reports (epochs, for training)."""

    seconds: float
    reports: int


def key_of(folder: Path) -> str:
    """The key of the result in this folder of the store."""
    return f"{folder.parent.name}/{folder.name}"


def manifest_in(folder: Path) -> Manifest | None:
    """The manifest of the finished result in this folder; None if it is missing or damaged."""
    try:
        return parse((folder / MANIFEST).read_bytes(), key=key_of(folder))
    except (FileNotFoundError, NotADirectoryError):
        return None


def own_paths(root: Path) -> Iterator[Path]:
    """Everything in the folders of stages that a store has put there itself: no links, no other names."""
    for stage in sorted(root.iterdir()) if root.is_dir() else ():
        if STAGE_NAME.fullmatch(stage.name) and stage.is_dir() and not stage.is_symlink():
            yield from (p for p in sorted(stage.iterdir()) if OWN_NAME.fullmatch(p.name) and not p.is_symlink())


def damage(folder: Path) -> str | None:
    """What is wrong with a finished result; None if its files are unchanged since they were written."""
    if not (folder / MANIFEST).exists():
        return f"{MANIFEST} is missing"
    manifest = manifest_in(folder)
    return f"{MANIFEST} cannot be read" if manifest is None else fault(folder, manifest)


def move_aside(folder: Path) -> None:
    """Rename a damaged result to make room for a new one, and log a warning."""
    # renamed rather than deleted: the files may show what damaged them
    reason = damage(folder)
    aside = set_aside(folder)
    log.warning("store: %s is damaged (%s); moved to %s and computed again", folder, reason, aside.name)


def moved_aside(root: Path) -> set[Path]:
    """The damaged results that `move_aside` has renamed, in a store's folder on this node."""
    return set(root.glob("*/*.corrupt-*"))


def made_since(root: Path, stage: str, since: float) -> list[Path]:
    """The folders on this node of a stage's results that any node has computed since a Unix time."""
    found = []
    for path in sorted(root.glob(f"{stage}/*/{MANIFEST}")):
        # a dot marks work in progress or a damaged result; the cheap check of the time spares reading old manifests
        if "." in path.parent.name or path.stat().st_mtime < since:
            continue
        manifest = manifest_in(path.parent)
        if manifest is not None and manifest.created >= since:  # a download is recent, but its result may be old
            found.append(path.parent)
    return found


def read_progress(partial: Path) -> Progress:
    """Read what `write_progress` wrote last; zeros for new work."""
    try:
        row = json.loads((partial / PROGRESS).read_text(encoding="utf-8"))
        return Progress(seconds=float(row["seconds"]), reports=int(row["reports"]))
    except (
        FileNotFoundError,
        RecursionError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
    ):  # new, or cut off by a kill
        return Progress(seconds=0.0, reports=0)


def write_progress(partial: Path, done: Progress) -> None:
    """Write the progress into the folder of the work."""
    write_text(partial / PROGRESS, to_json(dict(done)))


def describe_partial(partial: Path, *, key: str, version: int) -> Manifest:
    """Build the manifest of unfinished work, including its progress; flushes its files to the disk."""
    done = read_progress(partial)
    return describe(partial, key=key, version=version, seconds=done["seconds"], reports=done["reports"])


def drop_scratch(partial: Path) -> None:
    """Remove the temporary files that killed writers left behind."""
    for path in list(partial.rglob("*")):
        if path.is_file() and is_scratch(path) and path.name != PROGRESS:
            path.unlink()


def take_newest(remote: Remote, partial: Path) -> None:
    """Replace this node's unfinished work by another node's if that one has got further."""
    there = remote.manifest(PARTIAL)
    if there is not None and there.reports > read_progress(partial)["reports"] and remote.pull(there, partial, PARTIAL):
        write_progress(partial, Progress(seconds=there.seconds, reports=there.reports))


def is_finished(partial: Path) -> bool:
    """Whether an earlier attempt has written its record, and died before the result was put in place.

    A damaged record is moved aside, so that the attempt goes on and writes it again.
    """
    path = partial / RECORD
    if not path.exists():
        return False
    try:
        whole = isinstance(json.loads(path.read_bytes()), dict)
    except (RecursionError, ValueError):
        whole = False
    if not whole:
        log.warning("store: %s is damaged; moved to %s", path, set_aside(path).name)
    return whole


def failure_in(text: bytes | None) -> str | None:
    """The reason in a remembered failure; None if it is missing or damaged."""
    try:
        return None if text is None else str(json.loads(text)["reason"])
    except (RecursionError, ValueError, KeyError, TypeError):
        return None


def check_format(root: Path | None, objects: Objects | None, where: str) -> None:
    """Reject a store of another format, on this disk, below a URL, or both.

    Raises:
        ValueError: naming the store, both formats, and the fix.
    """
    # format 1 had neither a format file nor manifests: a record without a manifest gives it away
    marked = None if root is None else read_mark(root, None)
    if marked is not None:
        _check(marked, str(root))
    elif root is not None and not _has_results(root) and any(map(_without_manifest, root.glob(f"*/*/{RECORD}"))):
        raise ValueError(other_format(str(root), 1))
    if objects is not None and (there := read_mark(None, objects)) is not None:
        _check(there, where)


def is_marked(root: Path | None, objects: Objects | None) -> bool:
    """Whether this is a store: its format file lies there; if that is damaged, with a result beside it."""
    if read_mark(root, objects) is not None or root is None:
        return _mark(root, objects) is not None
    return _mark(root, None) is not None and _has_results(root)


def read_mark(root: Path | None, objects: Objects | None) -> dict[str, Any] | None:
    """The content of the format file; None if it is missing or damaged."""
    text = _mark(root, objects)
    try:
        row = json.loads(text or b"")
        return row if type(row["format"]) is int else None
    except (RecursionError, ValueError, KeyError, TypeError):
        return None


def mark_format(root: Path | None, objects: Objects | None) -> None:
    """Write the format file of a new store, and again where it is damaged."""
    if root is not None and read_mark(root, None) is None:
        text = _new_mark(root, None)
        root.mkdir(parents=True, exist_ok=True)
        if (root / FORMAT_FILE).exists():
            log.warning("store: %s is damaged; moved to %s", root / FORMAT_FILE, set_aside(root / FORMAT_FILE).name)
        write_text(root / FORMAT_FILE, text)
    if objects is not None and read_mark(None, objects) is None:
        objects.write(FORMAT_FILE, _new_mark(None, objects).encode())


def note_user(root: Path | None, objects: Objects | None, sweep: Path, sweep_id: str) -> None:
    """Put down that a sweep uses this store, so that nobody collects what it needs.

    A sweep beside its store is named by a relative path, so that both may be moved together; not if the store is a
    link, from behind which `..` leads elsewhere.
    """
    mark_format(root, objects)
    beside = objects is None and root is not None and root.resolve() == out_of(sweep).resolve() / STORE
    folder = str(Path(os.pardir, SWEEPS, sweep.name) if beside else sweep.resolve())
    text = to_json({"sweep": sweep.name, "sweep_id": sweep_id, "folder": folder})
    name = f"{USERS}/{hashlib.sha256(sweep_id.encode()).hexdigest()[:24]}.json"
    if objects is not None:
        objects.write(name, text.encode())
    elif root is not None:
        (root / USERS).mkdir(exist_ok=True)
        write_text(root / name, text)


def _mark(root: Path | None, objects: Objects | None) -> bytes | None:
    if root is None:
        assert objects is not None
        return objects.read(FORMAT_FILE)
    return (root / FORMAT_FILE).read_bytes() if (root / FORMAT_FILE).is_file() else None


def _new_mark(root: Path | None, objects: Objects | None) -> str:
    # `users`: everybody who has ever opened this store is noted in it, which an older one cannot promise
    return to_json({"format": FORMAT, **({"users": True} if _mark(root, objects) is None else {})})


def _has_results(root: Path) -> bool:
    return any(manifest_in(path) is not None for path in own_paths(root) if path.is_dir())


def _without_manifest(record: Path) -> bool:
    return "." not in record.parent.name and not (record.parent / MANIFEST).exists()


def _check(row: dict[str, Any], where: str) -> None:
    if row["format"] != FORMAT:
        raise ValueError(other_format(where, row["format"]))
