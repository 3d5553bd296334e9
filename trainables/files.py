"""Files written whole or not at all, and their digests (standard library only)."""

import hashlib
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

# by device and inode, so that a renamed file keeps its digest: (size, mtime in ns, digest)
_DIGESTS: dict[tuple[int, int], tuple[int, int, str]] = {}


def sha256(path: Path) -> str:
    """Hex digest of a file's content, remembered while size and modification time stay."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        known = _DIGESTS.get((status.st_dev, status.st_ino))
        if known is not None and known[:2] == (status.st_size, status.st_mtime_ns):
            return known[2]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _DIGESTS[status.st_dev, status.st_ino] = (status.st_size, status.st_mtime_ns, digest)
    return digest


def sync(path: Path) -> None:
    """Return when a file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, *, part: Path | None = None) -> Generator[BufferedRandom, None, None]:
    """A file to write (and to read again) that takes the place of `path` when the block ends without an error.

    Readers see the old content or all of the new one, never a part (POSIX rename), also after a power loss (fsync).
    An error, such as that of a full disk, leaves `path` as it was and nothing beside it.

    It is an open file rather than a path because `torch.save` writes a path's name into the file.

    Args:
        path: of the file to write.
        part: the name until then, in the same folder; by default one that no other process or thread uses. With a
            fixed one, which needs a lock, killed writers leave one unfinished file instead of one each.
    """
    part = part or path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with part.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file as a whole (see `replacing`)."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole (see `replacing`), in UTF-8."""
    write_bytes(path, text.encode())
