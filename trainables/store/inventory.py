"""List and remove the contents of a store, on this disk or below a URL (no torch, no Ray)."""

import contextlib
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainables.locks import file_lock_if_free
from trainables.store.entries import (
    FORMAT_FILE,
    OWN_NAME,
    USERS,
    check_format,
    is_marked,
    manifest_in,
    mark_format,
    note_user,
    own_paths,
    read_mark,
)
from trainables.store.lease import lease_age
from trainables.store.manifest import KEY, MANIFEST, Manifest, check_key, parse
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
    """A store as the garbage collector sees it: it lists and removes only what a store has written itself."""

    def check(self) -> None:
        """Raise ValueError if the store has another format."""

    def is_store(self) -> bool:
        """Whether the mark of a store lies here."""

    def notes_users(self) -> bool:
        """Whether every sweep that has ever opened the store is noted in it; not in stores of older versions."""

    def users(self) -> dict[str, bytes]:
        """The notes about sweeps that use the store: name -> content."""

    def note_user(self, sweep: Path, sweep_id: str) -> None:
        """Put down that a sweep uses the store."""

    def forget_user(self, name: str) -> None:
        """Remove one of the notes."""

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
        """Empty the store, whatever its format; return the keys that are in use and stay."""


class LocalShelf:
    """A store in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self) -> None:
        """Raise ValueError if the store has another format."""
        check_format(self._root, None, str(self._root))

    def is_store(self) -> bool:
        """Whether the mark of a store lies here."""
        return is_marked(self._root, None)

    def notes_users(self) -> bool:
        """Whether every sweep that has ever opened the store is noted in it; not in stores of older versions."""
        return (read_mark(self._root, None) or {}).get("users") is True

    def users(self) -> dict[str, bytes]:
        """The notes about sweeps that use the store: name -> content."""
        return {path.name: path.read_bytes() for path in sorted((self._root / USERS).glob("*.json"))}

    def note_user(self, sweep: Path, sweep_id: str) -> None:
        """Put down that a sweep uses the store."""
        note_user(self._root, None, sweep, sweep_id)

    def forget_user(self, name: str) -> None:
        """Remove one of the notes."""
        (self._root / USERS / name).unlink(missing_ok=True)

    def results(self) -> list[Manifest]:
        """The manifests of all finished results."""
        found = [manifest_in(path) for path in own_paths(self._root) if "." not in path.name]
        return [manifest for manifest in found if manifest is not None]

    def leftovers(self) -> list[Leftover]:
        """Unfinished work, damaged results, and half-removed ones that a killed collector left."""
        found = []
        for folder in filter(Path.is_dir, own_paths(self._root)):
            if "." not in folder.name and manifest_in(folder) is not None:
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
        return len(self._failed())

    def forget_failures(self) -> int:
        """Let failed keys be tried again; return how many there were."""
        paths = self._failed()
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
        stage, _, digest = check_key(key).partition("/")
        assert name.startswith(f"{stage}/{digest}"), f"{name} is no part of {key}"
        assert OWN_NAME.fullmatch(name.partition("/")[2]), f"{name} is no part of a store"
        with file_lock_if_free(self._root / f"{key}.lock") as free:
            if free:
                _remove(self._root / name)
                # safe while it is held: `file_lock` checks that the file it has locked is still the one at the path
                (self._root / f"{key}.lock").unlink(missing_ok=True)
        return free

    def clear(self) -> list[str]:
        """Empty the store, whatever its format; return the keys that are in use and stay."""
        paths: dict[str, list[Path]] = {}
        for path in list(own_paths(self._root)):
            paths.setdefault(f"{path.parent.name}/{path.name.partition('.')[0]}", []).append(path)
        kept = []
        for key, parts in paths.items():
            with file_lock_if_free(self._root / f"{key}.lock") as free:
                for path in (*parts, self._root / f"{key}.lock") if free else ():
                    _remove(path)
            kept += [] if free else [key]
        if not kept:
            (self._root / FORMAT_FILE).unlink(missing_ok=True)
            mark_format(self._root, None)
        return kept

    def _failed(self) -> list[Path]:
        return [path for path in own_paths(self._root) if path.name.endswith(f".{FAILED}")]


class RemoteShelf:
    """A store below a URL: a lease marks a key in use; the nodes' local caches are separate folders."""

    def __init__(self, url: str) -> None:
        self._url, self._objects = url, Objects(url)

    def check(self) -> None:
        """Raise ValueError if the store has another format."""
        check_format(None, self._objects, self._url)

    def is_store(self) -> bool:
        """Whether the mark of a store lies here."""
        return is_marked(None, self._objects)

    def notes_users(self) -> bool:
        """Whether every sweep that has ever opened the store is noted in it; not in stores of older versions."""
        return (read_mark(None, self._objects) or {}).get("users") is True

    def users(self) -> dict[str, bytes]:
        """The notes about sweeps that use the store: name -> content."""
        names = [name for name in self._objects.sizes(f"{USERS}/") if name.endswith(".json")]
        return {name.partition("/")[2]: self._objects.read(name) or b"" for name in names}

    def note_user(self, sweep: Path, sweep_id: str) -> None:
        """Put down that a sweep uses the store."""
        note_user(None, self._objects, sweep, sweep_id)

    def forget_user(self, name: str) -> None:
        """Remove one of the notes."""
        self._objects.delete([f"{USERS}/{name}"])

    def results(self) -> list[Manifest]:
        """The manifests of all finished results."""
        keys = [key for key, sizes in self._keys().items() if f"{key}/{MANIFEST}" in sizes]
        read = [parse(self._objects.read(f"{key}/{MANIFEST}") or b"", key=key) for key in keys]
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
        return len(self._failed())

    def forget_failures(self) -> int:
        """Let failed keys be tried again and return how many; failures in the nodes' own caches stay."""
        names = self._failed()
        self._objects.delete(names)
        return len(names)

    def is_free(self, key: str) -> bool:
        """Whether no process is working on a key."""
        lease = self._objects.read(f"{key}/{LEASE}")
        return lease is None or lease_age(lease) > LEASE_DEAD_S

    def remove(self, key: str, name: str) -> bool:
        """Remove a key's objects; False if the key is in use."""
        if not self.is_free(check_key(key)):
            return False
        # manifest first: without it the rest is no result, so that an interruption leaves no half of one
        names = sorted(self._objects.sizes(f"{key}/"), key=lambda name: not name.endswith(MANIFEST))
        self._objects.delete(names)
        return True

    def clear(self) -> list[str]:
        """Empty the store, whatever its format; return the keys that are in use and stay."""
        kept = [key for key in self._keys() if not self.remove(key, key)]
        if not kept:
            self._objects.delete([FORMAT_FILE])
            mark_format(None, self._objects)
        return kept

    def _failed(self) -> list[str]:
        return [name for sizes in self._keys().values() for name in sizes if name.endswith(f"/{FAILED}")]

    def _keys(self) -> dict[str, dict[str, int]]:
        keys: dict[str, dict[str, int]] = {}
        for name, size in self._objects.sizes().items():
            key, slash, _ = name.rpartition("/")
            if slash and KEY.fullmatch(key):
                keys.setdefault(key, {})[name] = size
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
