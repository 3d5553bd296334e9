"""Content-addressed results of stages: computed once, then reused (no torch, no Ray).

STORE/store.json                     the format of this layout
STORE/student/3f9a.../               a finished result: files, `record.json` and the manifest, put in place by a rename
STORE/student/3f9a....partial/       unfinished work, kept when it is interrupted: the next attempt resumes from it
STORE/student/3f9a....failed.json    why computing this always fails
STORE/student/3f9a....corrupt-1/     a result whose files were damaged; computed again
STORE/student/3f9a....lock           held while a process computes; the kernel releases it when that process dies

python -m trainables.store ls|du|gc --out runs
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Never, TypeVar

from trainables.files import write_text
from trainables.layout import CACHE, RECORD, STORE, has_record
from trainables.locks import file_lock, file_lock_if_free
from trainables.records.encoding import to_json
from trainables.store import entries
from trainables.store.lease import Lease
from trainables.store.manifest import MANIFEST, check_key
from trainables.store.objects import Objects
from trainables.store.remote import FAILED, LEASE, PARTIAL, Remote

Report = TypeVar("Report")
Compute = Callable[[Path], Generator[Report, None, None]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """The address of one result: the stage's name and a digest of everything that determines the result."""

    stage: str
    digest: str
    version: int = field(default=0, compare=False)
    """Version of the stage's code; part of the digest, repeated here for people to read."""

    def __post_init__(self) -> None:
        check_key(str(self))

    def __str__(self) -> str:
        return f"{self.stage}/{self.digest}"


def stage_key(stage: str, *, version: int, parents: Sequence[str] = (), **decides: Any) -> Key:
    """The key of a stage's result.

    Args:
        stage: its name, such as `student`.
        version: version of the stage's code; raised when a change of code changes results.
        parents: keys and fingerprints of the stage's inputs, in order.
        decides: every setting that influences the result, as JSON values.
    """
    text = json.dumps([stage, version, list(parents), decides], sort_keys=True, separators=(",", ":"))
    return Key(stage, hashlib.sha256(text.encode()).hexdigest()[:24], version)


def store_below(out: Path, storage: str | None) -> "Store":
    """The store of the sweeps in `out`; below `storage` if the nodes share one.

    Args:
        out: a folder of this node.
        storage: a folder that all nodes see at this path, or a URL; None for a single node.
    """
    if storage is None:
        return Store(out / STORE)
    if "://" not in storage:
        return Store(Path(storage) / STORE)
    cache = hashlib.sha256(storage.encode()).hexdigest()[:8]  # one cache per URL: their results differ
    return Store(f"{storage.rstrip('/')}/{STORE}", cache=out / CACHE / cache)


class Store:
    """Results of stages under one folder, or under one URL with a folder of this node as its cache."""

    def __init__(self, root: Path | str, *, cache: Path | None = None, stale_s: float = 60.0) -> None:
        """Prepare access without opening or writing anything yet.

        Args:
            root: a folder on a disk whose kernel locks all users share, or a URL that fsspec knows: `s3://bucket/runs`,
                or `file:///shared/runs` for a shared disk without trustworthy locks.
            cache: for a URL, the local folder that its results are downloaded into once and computed in.
            stale_s: for a URL, seconds without a heartbeat after which another node takes unfinished work over.

        Raises:
            ValueError: if a URL comes without a cache.
        """
        self.root = root
        self._objects: Objects | None = None
        if isinstance(root, Path) or "://" not in root:
            self.here = Path(root)
            """The folder on this node: the store itself, or the cache of a store under a URL."""
        elif cache is None:
            raise ValueError(f"the store {root} needs a local folder, but got {cache=}: Store({root!r}, cache=FOLDER).")
        else:
            self.here, self._objects = cache, Objects(root)
        self._stale_s, self._checked = stale_s, False

    def note_user(self, sweep: Path, sweep_id: str) -> None:
        """Put down that the sweep in this folder uses the store: nobody may collect what it needs."""
        entries.note_user(self.here, self._objects, sweep, sweep_id)

    def find(self, key: Key) -> Path | None:
        """Find a finished, intact result, download it if needed and return its folder on this node; or None.

        Raises:
            ValueError: if the store was written in another format.
        """
        self._check_format()
        if (folder := self._intact(key)) is not None or self._objects is None:
            return folder
        remote = Remote(self._objects, str(key))
        if remote.manifest() is None:
            return None
        with file_lock(self._beside(key, ".lock")):
            return self._intact(key) or self._download(key, remote)  # another process may have fetched it meanwhile

    def busy(self, key: Key) -> bool:
        """Whether a process on this node is computing `key` now."""
        with file_lock_if_free(self._beside(key, ".lock")) as free:
            return not free

    def failure(self, key: Key) -> str | None:
        """The reason why computing `key` always fails, if that is known; or None."""
        path = self._beside(key, f".{FAILED}")
        reason = entries.failure_in(path.read_bytes() if path.exists() else None)
        there = self._objects.read(f"{key}/{FAILED}") if reason is None and self._objects is not None else None
        return reason or entries.failure_in(there)

    def obtain(self, key: Key, compute: Compute[Report]) -> Generator[Report, None, Path]:
        """Return the folder of the result of `key`, computing it if it is missing; yields the reports of `compute`.

        `compute` gets a folder, which may hold the work of an interrupted attempt, and must write `record.json` last.
        If another process computes the same key, this one waits and then takes its result. Closing the generator
        early keeps the unfinished folder and releases the key. With a URL the folder is uploaded after every report,
        so that another node can resume from it. A damaged result is moved aside, logged and computed again.

        Raises:
            ValueError: as raised by `compute`. A plain ValueError is cached and raised again without computing. Its
                subclasses, those raised `from` another error (a broken file, a failed import) and all other exceptions
                are not cached: they leave the unfinished folder to the next attempt.
            ConnectionError: if another node has taken the work over.
        """
        if (found := self.find(key)) is not None:
            return found
        self._raise_cached_failure(key)
        with self._work(key) as work:  # both again: another process may have done it while this one waited
            if (found := self._find_or_move_aside(work)) is not None:
                return found
            self._raise_cached_failure(key)
            if work.remote is not None:
                entries.take_newest(work.remote, work.partial)
            work.partial.mkdir(parents=True, exist_ok=True)
            if not entries.is_finished(work.partial):  # else an earlier attempt died just before `_finish`
                yield from self._compute(work, compute)
            return self._finish(work)

    def once(self, key: Key, compute: Callable[[Path], None]) -> Path:
        """Like `obtain`, for work that reports nothing."""

        def reporting_nothing(folder: Path) -> Generator[Never, None, None]:
            compute(folder)
            yield from ()

        stage = self.obtain(key, reporting_nothing)
        try:
            next(stage)
        except StopIteration as end:
            return Path(end.value)
        raise AssertionError(f"{key} reported something")

    def _compute(self, work: "_Work", compute: Compute[Report]) -> Generator[Report, None, None]:
        done = entries.read_progress(work.partial)
        with closing(compute(work.partial)) as reports:
            while True:
                started = time.perf_counter()
                try:
                    report = next(reports)
                except StopIteration:
                    break
                except ValueError as error:
                    if type(error) is ValueError and error.__cause__ is None:
                        self._cache_failure(work.key, str(error))
                        shutil.rmtree(work.partial, ignore_errors=True)
                    raise
                finally:
                    done["seconds"] += time.perf_counter() - started
                done["reports"] += 1
                entries.write_progress(work.partial, done)
                work.share()
                yield report
        assert has_record(work.partial), f"stage {work.key} wrote no {RECORD}"
        entries.write_progress(work.partial, done)

    def _finish(self, work: "_Work") -> Path:
        """Commit the result: write the manifest, upload it if there is a URL, then rename the folder."""
        entries.drop_scratch(work.partial)
        manifest = entries.describe_partial(work.partial, key=str(work.key), version=work.key.version)
        write_text(work.partial / MANIFEST, to_json(manifest))
        if work.remote is not None:
            work.check()  # a node that lost its lease must not commit
            work.remote.push(work.partial, manifest, MANIFEST)
            work.remote.tidy()
        folder = self._folder(work.key)
        work.partial.rename(folder)
        (folder / entries.PROGRESS).unlink(missing_ok=True)
        return folder

    def _find_or_move_aside(self, work: "_Work") -> Path | None:
        """Like `find`, but move a damaged result aside."""
        if (found := self._intact(work.key)) is not None:
            return found
        if (folder := self._folder(work.key)).exists():
            entries.move_aside(folder)
        if work.remote is None or work.remote.manifest() is None:
            return None
        if (found := self._download(work.key, work.remote)) is None:
            work.remote.forget(MANIFEST)
        return found

    def _intact(self, key: Key) -> Path | None:
        folder = self._folder(key)
        return folder if folder.exists() and entries.damage(folder) is None else None

    def _download(self, key: Key, remote: Remote) -> Path | None:
        manifest, folder = remote.manifest(), self._folder(key)
        return folder if manifest is not None and remote.pull(manifest, folder, MANIFEST) else None

    def _cache_failure(self, key: Key, reason: str) -> None:
        text = to_json({"key": str(key), "version": key.version, "reason": reason, "created": time.time()})
        write_text(self._beside(key, f".{FAILED}"), text)
        if self._objects is not None:
            self._objects.write(f"{key}/{FAILED}", text.encode())

    def _raise_cached_failure(self, key: Key) -> None:
        if (reason := self.failure(key)) is not None:
            log.warning("store: %s failed before; `python -m trainables.store gc --failures` lets it try again", key)
            raise ValueError(reason)

    def _check_format(self) -> None:
        if not self._checked:
            entries.check_format(self.here, self._objects, str(self.root))
            self._checked = True

    @contextmanager
    def _work(self, key: Key) -> Generator["_Work", None, None]:
        """Hold the exclusive right to compute `key`: a lock on this node, and a lease between nodes."""
        partial = self._beside(key, ".partial")
        with file_lock(self._beside(key, ".lock")):
            entries.mark_format(self.here, self._objects)
            if self._objects is None:
                yield _Work(key, partial)
                return
            lease = Lease(self._objects, f"{key}/{LEASE}", stale_s=self._stale_s)
            lease.acquire()
            try:
                yield _Work(key, partial, Remote(self._objects, str(key)), lease)
            finally:
                lease.release()

    def _folder(self, key: Key) -> Path:
        return self.here / key.stage / key.digest

    def _beside(self, key: Key, suffix: str) -> Path:
        return self.here / key.stage / (key.digest + suffix)


@dataclass(frozen=True)
class _Work:
    """A key that only this process is working on."""

    key: Key
    partial: Path
    remote: Remote | None = None
    lease: Lease | None = None

    def check(self) -> None:
        """Raise ConnectionError if another node has taken it over."""
        if self.lease is not None:
            self.lease.check()

    def share(self) -> None:
        """Upload the unfinished work, so that another node can resume from it."""
        self.check()
        if self.remote is not None:
            try:
                manifest = entries.describe_partial(self.partial, key=str(self.key), version=self.key.version)
                self.remote.push(self.partial, manifest, PARTIAL)
            except OSError as error:  # the next report tries again; training need not wait for a network
                log.warning("store: unfinished %s was not uploaded: %s", self.key, error)
