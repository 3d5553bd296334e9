"""List and remove the contents of a store, on this disk or below a URL (no torch, no Ray)."""

import contextlib
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainables.locks import file_lock_if_free
from trainables.store.entries import FORMAT_FILE, check_format
from trainables.store.lease import lease_age
from trainables.store.manifest import MANIFEST, Manifest, parse
from trainables.store.objects import Objects
from trainables.store.remote import FAILED, LEASE

# Ten times the default lease timeout of `Store`: clocks of nodes differ by less.
LEASE_DEAD_S = 600.0


@dataclass(frozen=True)
class Leftover:
    """Unfinished work, or a damaged result that was moved aside."""

    key: str
    name: str
    """Path relative to the store."""
    size_bytes: int
    age_s: float
    """Seconds since the last write to it."""


class Shelf(Protocol):
    """A store as the garbage collector sees it."""

    def check(self) -> None:
        """Raise ValueError if the store has another format."""

    def results(self) -> list[Manifest]:
        """The manifests of all finished results."""

    def leftovers(self) -> list[Leftover]:
        """Unfinished work and damaged results."""

    def failures(self) -> int:
        """The number of keys with a cached failure."""

    def forget_failures(self) -> int:
        """Let failed keys be tried again; return how many there were."""

    def is_free(self, key: str) -> bool:
        """Whether no process is working on a key."""

    def remove(self, key: str, name: str) -> bool:
        """Remove a key's result or one of its leftovers; False if the key is in use."""

    def clear(self) -> list[str]:
        """Remove everything, whatever its format; return the keys that are in use and stay."""


class LocalShelf:
    """A store in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self) -> None:
        """Raise ValueError if the store has another format."""
        check_format(self._root, None, str(self._root))

    def results(self) -> list[Manifest]:
        """The manifests of all finished results."""
        paths = sorted(path for path in self._root.glob(f"*/*/{MANIFEST}") if "." not in path.parent.name)
        manifests = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # a sweep that runs may replace what was just listed
                manifests.append(parse(path.read_bytes(), str(path)))
        return [manifest for manifest in manifests if manifest is not None]

    def leftovers(self) -> list[Leftover]:
        """Unfinished work, results moved aside, and half-removed ones that a killed collector left."""
        found = []
        folders = sorted(path for path in self._root.glob("*/*") if path.is_dir())
        for folder in folders:
            if "." not in folder.name and (folder / MANIFEST).exists():
                continue
            status = []
            for path in (folder, *folder.rglob("*")):
                with contextlib.suppress(FileNotFoundError):  # a running sweep deletes temporary files meanwhile
                    status.append(path.stat())
            if not status:
                continue
            key = f"{folder.parent.name}/{folder.name.partition('.')[0]}"
            age = time.time() - max(part.st_mtime for part in status)
            size = sum(part.st_size for part in status if stat.S_ISREG(part.st_mode))
            found.append(Leftover(key, f"{folder.parent.name}/{folder.name}", size, age))
        return found

    def failures(self) -> int:
        """The number of keys with a cached failure."""
        return len(list(self._root.glob(f"*/*.{FAILED}")))

    def forget_failures(self) -> int:
        """Let failed keys be tried again; return how many there were."""
        paths = list(self._root.glob(f"*/*.{FAILED}"))
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def is_free(self, key: str) -> bool:
        """Whether no process is working on a key."""
        path = self._root / f"{key}.lock"
        if not path.exists():
            return True
        with file_lock_if_free(path) as free:
            return free

    def remove(self, key: str, name: str) -> bool:
        """Remove a key's result or one of its leftovers; False if the key is in use."""
        with file_lock_if_free(self._root / f"{key}.lock") as free:
            if free:
                _remove(self._root / name)
                # safe while it is held: `file_lock` checks that the file it has locked is still the one at the path
                (self._root / f"{key}.lock").unlink(missing_ok=True)
        return free

    def clear(self) -> list[str]:
        """Remove everything, whatever its format; return the keys that are in use and stay."""
        paths: dict[str, list[Path]] = {}
        for path in sorted(self._root.glob("*/*")):
            paths.setdefault(f"{path.parent.name}/{path.name.partition('.')[0]}", []).append(path)
        kept = []
        for key, parts in paths.items():
            with file_lock_if_free(self._root / f"{key}.lock") as free:
                for path in (*parts, self._root / f"{key}.lock") if free else ():
                    _remove(path)
            kept += [] if free else [key]
        if not kept:
            (self._root / FORMAT_FILE).unlink(missing_ok=True)
        return kept


class RemoteShelf:
    """A store below a URL: a lease marks a key in use; the nodes' local caches are separate folders."""

    def __init__(self, url: str) -> None:
        self._url, self._objects = url, Objects(url)

    def check(self) -> None:
        """Raise ValueError if the store has another format."""
        check_format(None, self._objects, self._url)

    def results(self) -> list[Manifest]:
        """The manifests of all finished results."""
        names = [name for name in self._objects.sizes() if name.endswith(f"/{MANIFEST}")]
        read = [parse(self._objects.read(name) or b"", name) for name in names]
        return [manifest for manifest in read if manifest is not None]

    def leftovers(self) -> list[Leftover]:
        """Files of keys that have no finished result."""
        keys = self._keys()
        found = []
        for key, sizes in keys.items():
            rest = {name: size for name, size in sizes.items() if not name.endswith((f"/{FAILED}", f"/{LEASE}"))}
            if rest and f"{key}/{MANIFEST}" not in sizes:
                age = min(self._objects.age(name) for name in rest)
                found.append(Leftover(key, key, sum(rest.values()), age))
        return found

    def failures(self) -> int:
        """The number of keys with a cached failure."""
        return sum(name.endswith(f"/{FAILED}") for name in self._objects.sizes())

    def forget_failures(self) -> int:
        """Let failed keys be tried again and return how many; failures in the nodes' own caches stay."""
        names = [name for name in self._objects.sizes() if name.endswith(f"/{FAILED}")]
        self._objects.delete(names)
        return len(names)

    def is_free(self, key: str) -> bool:
        """Whether no process is working on a key."""
        lease = self._objects.read(f"{key}/{LEASE}")
        return lease is None or lease_age(lease) > LEASE_DEAD_S

    def remove(self, key: str, name: str) -> bool:
        """Remove a key's objects; False if the key is in use."""
        if not self.is_free(key):
            return False
        # manifest first: without it the rest is no result, so that an interruption leaves no half of one
        names = sorted(self._objects.sizes(f"{key}/"), key=lambda name: not name.endswith(MANIFEST))
        self._objects.delete(names)
        return True

    def clear(self) -> list[str]:
        """Remove everything, whatever its format; return the keys that are in use and stay."""
        kept = [key for key in self._keys() if not self.remove(key, key)]
        if not kept:
            self._objects.delete([FORMAT_FILE])
        return kept

    def _keys(self) -> dict[str, dict[str, int]]:
        keys: dict[str, dict[str, int]] = {}
        for name, size in self._objects.sizes().items():
            if name.count("/") >= 2:  # STAGE/DIGEST/FILE; the format file lies at the top
                keys.setdefault("/".join(name.split("/")[:2]), {})[name] = size
        return keys


def _remove(path: Path) -> None:
    """Remove a file or a folder.

    A folder is first renamed, then deleted file by file: a killed collector leaves no half of a result in place.
    """
    if path.is_dir():
        gone = path if path.suffix else path.with_name(f"{path.name}.removed")
        if gone != path:
            shutil.rmtree(gone, ignore_errors=True)
            path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
