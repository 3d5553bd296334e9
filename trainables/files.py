"""Files written whole or not at all, and their digests (standard library only)."""

import hashlib
import os
import threading
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part (POSIX rename)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # a full disk keeps no half-written file
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """A reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
