"""Objects below one URL: the few operations that a store needs of S3, a shared disk or memory (fsspec; no torch)."""

import logging
import time
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import fsspec

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)

MEANT = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, ValueError, NotImplementedError)
"""What a file system answers; anything else is a network that may come back."""
LONGEST_WAIT_S = 10.0


class Objects:
    """Named objects below a URL such as `s3://bucket/prefix`; every file system that fsspec knows."""

    def __init__(self, url: str, *, patience_s: float = 300.0) -> None:
        """Nothing is opened yet.

        Args:
            url: of a folder or a bucket's prefix.
            patience_s: seconds for which an operation waits for a network that is away; a disk is not waited for.

        Raises:
            ValueError: if fsspec does not know the URL's scheme, or the package for it is not installed.
        """
        self._url = url
        self._on_disk = url.startswith(("file:", "local:"))
        self._patience_s = 0.0 if self._on_disk else patience_s
        options = {"auto_mkdir": True} if self._on_disk else {}
        try:
            self._fs, base = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{url} cannot be opened: {error}") from error
        self._base = str(base).rstrip("/")

    def hurried(self) -> "Objects":
        """The same objects for somebody who has better things to do than to wait for a network."""
        return Objects(self._url, patience_s=0.0)

    def read(self, name: str) -> bytes | None:
        """An object's content, or None if there is none."""
        try:
            return bytes(self._patiently(lambda: self._fs.cat_file(self._path(name))))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Put an object in place as a whole; replaces."""
        path = self._path(name)
        if not self._on_disk:
            self._patiently(lambda: self._fs.pipe_file(path, content))
            return
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"  # a disk shows a file while it is written, a bucket does not
        self._fs.pipe_file(temporary, content)
        self._fs.mv(temporary, path)

    def create(self, name: str, content: bytes) -> bool:
        """Put an object in place if there is none; False if there is one.

        Where the file system has no exclusive creation this looks first and writes then: two may both succeed.
        """
        path = self._path(name)

        def exclusively() -> None:
            with self._fs.open(path, "xb") as file:
                file.write(content)

        try:
            self._patiently(exclusively)
        except FileExistsError:
            return False
        except (ValueError, NotImplementedError):  # how file systems say that they do not know "xb"
            if self.read(name) is not None:
                return False
            self.write(name, content)
        return True

    def upload(self, source: Path, name: str) -> None:
        """Copy a file there."""
        self._patiently(lambda: self._fs.put_file(str(source), self._path(name)))

    def download(self, name: str, target: Path) -> None:
        """Copy an object here.

        Raises:
            FileNotFoundError: if there is none.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        self._patiently(lambda: self._fs.get_file(self._path(name), str(target)))

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are gone already are none the worse."""
        for name in names:
            path = self._path(name)
            try:
                self._patiently(partial(self._fs.rm_file, path))
            except FileNotFoundError:
                continue

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of all objects below a prefix, by name."""
        self._fs.invalidate_cache()
        top = self._path(prefix) if prefix else self._base
        try:
            found = self._patiently(lambda: self._fs.find(top, detail=True))
        except FileNotFoundError:
            return {}
        return {str(path).removeprefix(self._base).lstrip("/"): int(info["size"]) for path, info in found.items()}

    def age(self, name: str) -> float:
        """Seconds since an object was written; 0 where the file system does not say."""
        try:
            return time.time() - float(self._fs.modified(self._path(name)).timestamp())
        except (FileNotFoundError, NotImplementedError):
            return 0.0

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """What a call answers, tried again while the network is away.

        Raises:
            ConnectionError: if it was away for too long; clients of buckets have exceptions of their own for that.
        """
        until, wait_s = time.monotonic() + self._patience_s, 0.5
        while True:
            try:
                return call()
            except MEANT:
                raise
            except Exception as error:  # every bucket's client has kinds of its own
                if self._on_disk:
                    raise
                if time.monotonic() + wait_s > until:
                    raise ConnectionError(f"{self._url} does not answer: {error}") from error
                log.warning("%s does not answer (%s); trying again", self._url, error)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"
