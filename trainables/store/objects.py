"""Objects below one URL: the operations that a store needs on S3, a shared disk or memory (fsspec; no torch)."""

import logging
import time
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import fsspec

from trainables.locks import without_shares

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)

# Definite answers of a file system. Any other error is taken for a network failure and retried.
FINAL_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, ValueError, NotImplementedError)
LONGEST_WAIT_S = 10.0  # between two attempts


class Objects:
    """Named objects below a URL such as `s3://bucket/prefix`, on any file system that fsspec supports."""

    def __init__(self, url: str, *, patience_s: float = 300.0) -> None:
        """Prepare access without opening anything yet.

        Args:
            url: a folder, or a prefix in a bucket.
            patience_s: seconds for which an operation is retried while the network is down; ignored for a disk.

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

    def without_retries(self) -> "Objects":
        """The same objects, but without waiting for a network that is down."""
        return Objects(self._url, patience_s=0.0)

    def read(self, name: str) -> bytes | None:
        """Read an object's content; None if it does not exist."""
        try:
            return bytes(self._retry(lambda: self._fs.cat_file(self._path(name))))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write an object atomically, replacing an existing one."""
        path = self._path(name)
        if not self._on_disk:
            self._retry(lambda: self._fs.pipe_file(path, content))
            return
        # on a disk a reader can see a half-written file; a bucket shows an object only once it is complete
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        self._fs.pipe_file(temporary, content)
        self._fs.mv(temporary, path)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless it exists; False if it does.

        On a file system without exclusive creation this checks first and writes afterwards, so two callers may succeed.
        """
        path = self._path(name)

        def create_exclusively() -> None:
            with self._fs.open(path, "xb") as file:
                file.write(content)

        try:
            self._retry(create_exclusively)
        except FileExistsError:
            return False
        except (ValueError, NotImplementedError):  # the mode "xb" is not supported
            if self.read(name) is not None:
                return False
            self.write(name, content)
        return True

    def upload(self, source: Path, name: str) -> None:
        """Copy a local file to an object."""
        self._retry(lambda: self._fs.put_file(str(source), self._path(name)))

    def download(self, name: str, target: Path) -> None:
        """Copy an object to a local file.

        Raises:
            FileNotFoundError: if the object does not exist.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        self._retry(lambda: self._fs.get_file(self._path(name), str(target)))

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; missing ones are ignored."""
        for name in names:
            path = self._path(name)
            try:
                self._retry(partial(self._fs.rm_file, path))
            except FileNotFoundError:
                continue

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """The size in bytes of every object below a prefix, by name."""
        # fsspec caches listings, and other nodes write here too
        self._fs.invalidate_cache()
        top = self._path(prefix) if prefix else self._base
        try:
            found = self._retry(lambda: self._fs.find(top, detail=True))
        except FileNotFoundError:
            return {}
        return {str(path).removeprefix(self._base).lstrip("/"): int(info["size"]) for path, info in found.items()}

    def age(self, name: str) -> float:
        """Seconds since an object was written; 0 where the file system does not say."""
        try:
            return time.time() - float(self._fs.modified(self._path(name)).timestamp())
        except (FileNotFoundError, NotImplementedError):
            return 0.0

    def _retry(self, call: Callable[[], Answer]) -> Answer:
        """Call and return the result, retrying while the network is down.

        Raises:
            ConnectionError: if it stays down for too long, whatever exception the bucket's client raises.
        """
        until, wait_s = time.monotonic() + self._patience_s, 0.5
        while True:
            try:
                return call()
            except FINAL_ERRORS:
                raise
            except Exception as error:  # each bucket client has its own exception types
                if self._on_disk:
                    raise
                if time.monotonic() + wait_s > until:
                    raise ConnectionError(f"{self._url} does not answer: {error}") from error
                log.warning("%s does not answer (%s); trying again", self._url, error)
            with without_shares():
                time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"
