"""Objects below one URL: the few operations that a store needs of S3, a shared disk or memory (fsspec; no torch)."""

import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import fsspec  # type: ignore[import-untyped]


class Objects:
    """Named objects below a URL such as `s3://bucket/prefix`; every file system that fsspec knows."""

    def __init__(self, url: str) -> None:
        self._on_disk = url.startswith(("file:", "local:"))
        options = {"auto_mkdir": True} if self._on_disk else {}
        self._fs, base = fsspec.core.url_to_fs(url, **options)
        self._base = str(base).rstrip("/")

    def read(self, name: str) -> bytes | None:
        """An object's content, or None if there is none."""
        try:
            return bytes(self._fs.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Put an object in place as a whole; replaces."""
        path = self._path(name)
        if not self._on_disk:
            self._fs.pipe_file(path, content)
            return
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"  # a disk shows a file while it is written, a bucket does not
        self._fs.pipe_file(temporary, content)
        self._fs.mv(temporary, path)

    def create(self, name: str, content: bytes) -> bool:
        """Put an object in place if there is none; False if there is one.

        Where the file system has no exclusive creation this looks first and writes then: two may both succeed.
        """
        path = self._path(name)
        try:
            with self._fs.open(path, "xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        except (ValueError, NotImplementedError):  # how file systems say that they do not know "xb"
            if self.read(name) is not None:
                return False
            self.write(name, content)
        return True

    def upload(self, source: Path, name: str) -> None:
        """Copy a file there."""
        self._fs.put_file(str(source), self._path(name))

    def download(self, name: str, target: Path) -> None:
        """Copy an object here.

        Raises:
            FileNotFoundError: if there is none.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        self._fs.get_file(self._path(name), str(target))

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are gone already are none the worse."""
        for name in names:
            try:
                self._fs.rm_file(self._path(name))
            except FileNotFoundError:
                continue

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of all objects below a prefix, by name."""
        self._fs.invalidate_cache()
        top = self._path(prefix) if prefix else self._base
        try:
            found = self._fs.find(top, detail=True)
        except FileNotFoundError:
            return {}
        return {str(path).removeprefix(self._base).lstrip("/"): int(info["size"]) for path, info in found.items()}

    def age(self, name: str) -> float:
        """Seconds since an object was written; 0 where the file system does not say."""
        try:
            return time.time() - float(self._fs.modified(self._path(name)).timestamp())
        except (FileNotFoundError, NotImplementedError):
            return 0.0

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"
