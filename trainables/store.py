"""Content-addressed results of stages: computed once, found again by whoever needs them (no torch, no Ray).

STORE/student/3f9a.../          a finished result: files and `record.json`, put in place by one rename
STORE/student/3f9a....partial/  work under way, kept when it is interrupted: the next one goes on from there
STORE/student/3f9a....lock      held while somebody computes; the kernel lets go of it when that process dies
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Report = TypeVar("Report")


@dataclass(frozen=True)
class Key:
    """The address of one result: stage name and digest of everything that decides it."""

    stage: str
    digest: str

    def __str__(self) -> str:
        return f"{self.stage}/{self.digest}"


def stage_key(stage: str, *, version: int, parents: Sequence[str] = (), **decides: Any) -> Key:
    """The key of a stage's result.

    Args:
        stage: such as `student`.
        version: of the stage's code; raised when a change of code changes results.
        parents: keys and fingerprints of what the stage starts from, in order.
        decides: every setting that influences the result, as JSON values.
    """
    text = json.dumps([stage, version, list(parents), decides], sort_keys=True, separators=(",", ":"))
    return Key(stage, hashlib.sha256(text.encode()).hexdigest()[:24])


class Store:
    """Results of stages under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: Key) -> Path | None:
        """The folder of a finished result, or None."""
        folder = self._folder(key)
        return folder if (folder / "record.json").exists() else None

    def obtain(
        self, key: Key, compute: Callable[[Path], Generator[Report, None, None]]
    ) -> Generator[Report, None, Path]:
        """Take the result under `key`, computing it if nobody has; yields the reports of computing.

        `compute` gets a folder that may hold what an interrupted attempt left there and must write `record.json`
        last. While another process computes the same key, this one waits, then takes its result. Closing the
        generator early keeps the unfinished folder and lets others in.
        """
        if (found := self.find(key)) is not None:
            return found
        with self._lock(key):
            if (found := self.find(key)) is not None:
                return found
            folder = self._folder(key)
            partial = folder.with_name(folder.name + ".partial")
            partial.mkdir(parents=True, exist_ok=True)
            yield from compute(partial)
            assert (partial / "record.json").exists(), f"stage {key} wrote no record.json"
            partial.rename(folder)
        return folder

    def _folder(self, key: Key) -> Path:
        return self.root / key.stage / key.digest

    @contextmanager
    def _lock(self, key: Key) -> Generator[None, None, None]:
        folder = self._folder(key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder.with_name(folder.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
