"""The manifest of a stored result: size and SHA-256 of every file, and its cost (standard library only)."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainables.files import sha256, sync
from trainables.records.encoding import decode

# Version of the store's layout; version 1 had no manifests.
FORMAT = 2
MANIFEST = "manifest.json"
STAGE_NAME = re.compile(r"[a-z][a-z0-9_]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
KEY = re.compile(rf"{STAGE_NAME.pattern}/[0-9a-f]{{16,64}}")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a result."""

    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The files of a result or of unfinished work, with their cost."""

    key: str
    """`STAGE/DIGEST`."""
    version: int
    """Version of the stage's code."""
    seconds: float
    """Wall time of all attempts, including the time of other results that the stage had computed on its behalf."""
    reports: int
    """How often the stage reported: epochs, for training."""
    created: float
    """Unix time, seconds."""
    files: Mapping[str, FileEntry]
    """By path below the result's folder, with forward slashes."""
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        """Total bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def describe(folder: Path, *, key: str, version: int, seconds: float, reports: int) -> Manifest:
    """Flush a folder's files to the disk and build its manifest; hidden and temporary files are left out."""
    files = {}
    for path in result_files(folder):
        sync(path)  # the manifest promises these contents, also after a power loss
        files[path.relative_to(folder).as_posix()] = FileEntry(sha256=sha256(path), size=path.stat().st_size)
    return Manifest(key=key, version=version, seconds=seconds, reports=reports, created=time.time(), files=files)


def result_files(folder: Path) -> Iterator[Path]:
    """The files of a result, without its manifest and without what killed writers leave behind."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not is_scratch(path) and path != folder / MANIFEST:
            yield path


def is_scratch(path: Path) -> bool:
    """Whether a file is a writer's temporary file, `.name` or `name.tmp`, or a damaged one that was set aside."""
    return path.name.startswith(".") or path.suffix == ".tmp" or ".corrupt-" in path.name


def parse(text: str | bytes, *, key: str) -> Manifest | None:
    """Parse the manifest of `key` that `to_json` wrote; None if the text is anything else."""
    try:
        manifest = decode(Manifest, json.loads(text), where=key)
        # a manifest names what it describes: one that was copied, or made up, must not speak for another place
        sound = (manifest.format, manifest.key) == (FORMAT, key) and all(map(inside, manifest.files))
        sound = sound and all(SHA256.fullmatch(entry.sha256) for entry in manifest.files.values())
    except (RecursionError, ValueError):  # a damaged text may be any JSON, or no JSON at all
        return None
    return manifest if sound else None


def check_key(key: str) -> str:
    """The key itself, once it is known to be `STAGE/DIGEST` and no other path.

    Raises:
        ValueError: if it is not.
    """
    # keys are read from manifests and records, and name folders that are written and removed
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key of the store.")
    return key


def inside(name: str) -> str:
    """The path itself, once it is known to stay below the folder that it is joined to.

    Raises:
        ValueError: if it does not.
    """
    # manifests come from shared storage: a malicious one must not make us write elsewhere
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is no path below a folder.")
    return name


def other_format(where: str, found: object) -> str:
    """The error message for a store that this version cannot read."""
    return (
        f"{where} was written in store format {found}, but this version reads format {FORMAT}: "
        "take another --out, or empty that store with `python -m trainables.store gc --all`."
    )


def fault(folder: Path, manifest: Manifest) -> str | None:
    """What is wrong with a folder that should hold the manifest's files; None if they are all intact.

    Sizes are compared on every call; contents on a file's first use in this process and whenever its size or
    modification time has changed.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            if (size := path.stat().st_size) != entry.size:
                return f"{name} has {size} bytes instead of {entry.size}"
            if sha256(path) != entry.sha256:
                return f"{name} does not have its SHA-256"
        except FileNotFoundError:
            return f"{name} is missing"
    return None
