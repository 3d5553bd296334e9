"""Atomic file writes, and digests of files (standard library only)."""

import errno
import hashlib
import os
import shutil
import struct
import threading
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

# by device and inode, so that a renamed file keeps its digest: (size, mtime in ns, digest)
_DIGESTS: dict[tuple[int, int], tuple[int, int, str]] = {}

TAIL_BYTES = 65536  # block size when searching backwards for the last complete line


def sha256(path: Path) -> str:
    """The hex digest of a file's content, cached until its size or modification time changes."""
    with path.open("rb") as file:
        # fstat of the open file: the path may be replaced between two calls
        status = os.fstat(file.fileno())
        known = _DIGESTS.get((status.st_dev, status.st_ino))
        if known is not None and known[:2] == (status.st_size, status.st_mtime_ns):
            return known[2]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _DIGESTS[status.st_dev, status.st_ino] = (status.st_size, status.st_mtime_ns, digest)
    return digest


def sync(path: Path) -> None:
    """Flush a file's content to the disk; return when it is there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, *, part: Path | None = None) -> Generator[BufferedRandom, None, None]:
    """Open a temporary file (for writing and reading) that replaces `path` when the block ends without an error.

    Readers see the old content or all of the new content, never a part (POSIX rename), even after a power loss (fsync).
    After an error, such as a full disk, `path` is unchanged and no temporary file is left.

    Args:
        path: the file to write.
        part: the temporary file, in the same folder; by default a name that no other process or thread uses. A fixed
            name needs a lock, but killed writers then leave only one unfinished file altogether.
    """
    # an open file rather than a path, because `torch.save` writes a path's name into the file
    part = part or path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with part.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:  # including Ctrl-C: leave no unfinished file, then propagate
        part.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically (see `replacing`)."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically (see `replacing`)."""
    write_bytes(path, text.encode())


def copy_file(source: Path, target: Path) -> Path:
    """Copy a file's content atomically; a link at `target` is replaced, not followed. Returns `target`."""
    with source.open("rb") as content, replacing(target) as file:
        shutil.copyfileobj(content, file)
    return target


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to `NAME.corrupt-1` (-2, ...), for whoever wants to know; return that path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    return path.rename(aside)


def whole_archive(path: Path) -> bool:
    """Whether a zip archive, as torch writes them, is there with every checksum right; a damaged one is set aside."""
    # torch checks no checksum itself: a file of zeros in the middle would be read as weights
    if not path.exists():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is None:
                return True
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError, struct.error):
        pass  # as many as there are ways to damage it
    except OSError as error:  # an offset before the beginning, and not a disk that fails
        if error.errno != errno.EINVAL:
            raise
    set_aside(path)
    return False


def drop_half_line(path: Path) -> None:
    """Cut off an incomplete last line, left by a process that was killed or ran out of disk space."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - TAIL_BYTES)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                file.truncate(start + found + 1)
                return
            end = start
        file.truncate(0)


def digest_of(path: Path, field: str) -> str:
    """The short digest that stands for a user's file, the value of a field, in configurations, names and keys.

    Raises:
        ValueError: if there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"{field}={path}: no such file.")
    return sha256(path)[:16]
