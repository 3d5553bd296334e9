"""Folders of a store on this disk: content, integrity, progress and layout format (no torch, no Ray)."""

import json
import logging
from pathlib import Path
from typing import TypedDict

from trainables.files import write_text
from trainables.layout import RECORD
from trainables.records.encoding import to_json
from trainables.store.manifest import FORMAT, MANIFEST, Manifest, describe, fault, is_scratch, other_format, parse
from trainables.store.objects import Objects
from trainables.store.remote import PARTIAL, Remote

log = logging.getLogger(__name__)

FORMAT_FILE = "store.json"
PROGRESS = ".progress.json"


class Progress(TypedDict):
    """Progress of unfinished work: compute seconds so far, and reports (epochs, for training)."""

    seconds: float
    reports: int


def damage(folder: Path) -> str | None:
    """What is wrong with a finished result; None if its files are unchanged since they were written.

    Raises:
        ValueError: if it was written in another format.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    manifest = parse(text, str(folder / MANIFEST))
    return f"{MANIFEST} cannot be read" if manifest is None else fault(folder, manifest)


def move_aside(folder: Path) -> None:
    """Rename a damaged result to make room for a new one, and log a warning."""
    # renamed rather than deleted: the files may show what damaged them
    reason, number = damage(folder), 1
    while (aside := folder.with_name(f"{folder.name}.corrupt-{number}")).exists():
        number += 1
    folder.rename(aside)
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
        manifest = parse(path.read_bytes(), str(path))
        if manifest is not None and manifest.created >= since:  # a download is recent, but its result may be old
            found.append(path.parent)
    return found


def read_progress(partial: Path) -> Progress:
    """Read what `write_progress` wrote last; zeros for new work."""
    try:
        row = json.loads((partial / PROGRESS).read_text(encoding="utf-8"))
        return Progress(seconds=float(row["seconds"]), reports=int(row["reports"]))
    except (FileNotFoundError, ValueError, KeyError):  # new, or cut off by a kill
        return Progress(seconds=0.0, reports=0)


def write_progress(partial: Path, done: Progress) -> None:
    """Write the progress into the folder of the work."""
    (partial / PROGRESS).write_text(to_json(dict(done)), encoding="utf-8")


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


def check_format(root: Path | None, objects: Objects | None, where: str) -> None:
    """Reject a store of another format, on this disk, below a URL, or both.

    Raises:
        ValueError: naming the store, both formats, and the fix.
    """
    # format 1 had neither a format file nor manifests: a record without a manifest gives it away
    if root is not None and (root / FORMAT_FILE).exists():
        _check((root / FORMAT_FILE).read_bytes(), str(root))
    elif root is not None and any(map(_without_manifest, root.glob(f"*/*/{RECORD}"))):
        raise ValueError(other_format(str(root), 1))
    if objects is not None and (text := objects.read(FORMAT_FILE)) is not None:
        _check(text, where)


def mark_format(root: Path, objects: Objects | None) -> None:
    """Write the format file of a new store."""
    text = to_json({"format": FORMAT})
    if not (root / FORMAT_FILE).exists():
        root.mkdir(parents=True, exist_ok=True)
        write_text(root / FORMAT_FILE, text)
    if objects is not None and objects.read(FORMAT_FILE) is None:
        objects.write(FORMAT_FILE, text.encode())


def _without_manifest(record: Path) -> bool:
    return "." not in record.parent.name and not (record.parent / MANIFEST).exists()


def _check(text: bytes, where: str) -> None:
    try:
        found = json.loads(text)["format"]
    except (ValueError, KeyError, TypeError):
        found = "unknown"
    if found != FORMAT:
        raise ValueError(other_format(where, found))
