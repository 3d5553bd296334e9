"""Runs on a machine elsewhere before anything of ours is there: takes files, then becomes a module from one of them.

`python3 -c` gets this text, in the folder that keeps the files. It is written for any Python 3, so that one that is too
old is told, too.
"""

import contextlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

FILES = Path("files")
LEAST = (3, 11)
# Files that are kept: the last ones used, and those used within the last hour, which a process may be about to open.
KEPT, KEPT_S = 16, 3600


def main() -> None:
    """Read a request as a line of JSON, answer what is missing, take that, and start the module."""
    asked = json.loads(_read_line())
    lacking = _find_lacking(asked["needs"])
    if lacking:
        _answer({"lacking": lacking})
        return
    FILES.mkdir(exist_ok=True)
    missing = [name for name, size in asked["files"].items() if not _is_there(FILES / name, size)]
    _answer({"missing": missing})
    for name in missing:
        _take(FILES / name, asked["files"][name])
    _make_room(asked["files"])
    os.environ.update(asked["environment"])
    os.environ["PYTHONPATH"] = str(Path.cwd() / FILES / asked["package"])
    os.execv(sys.executable, [sys.executable, "-m", *asked["module"]])


def _find_lacking(needs: "list[str]") -> str:
    if sys.version_info[:2] < LEAST:
        return "its python3 is {}.{}, and {}.{} is needed".format(*sys.version_info[:2], *LEAST)
    absent = [name for name in needs if importlib.util.find_spec(name) is None]
    return f"its python3 has no {' and no '.join(absent)}" if absent else ""


def _is_there(path: Path, size: int) -> bool:
    there = path.exists() and path.stat().st_size == size
    if there:
        os.utime(str(path))
    return there


def _take(path: Path, size: int) -> None:
    part = Path(f"{path}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            while size > 0:
                data = os.read(0, min(size, 65536))
                if not data:
                    sys.exit("the sender went away")
                file.write(data)
                size -= len(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        if part.exists():
            part.unlink()


def _make_room(needed: "dict[str, int]") -> None:
    used = {}
    for path in FILES.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another sender's receiver makes room as well
            used[path] = path.stat().st_mtime
    for path in sorted(used, key=lambda path: -used[path])[KEPT:]:
        if path.name not in needed and time.time() - used[path] > KEPT_S:
            path.unlink(missing_ok=True)


def _read_line() -> bytes:
    # one byte at a time: what follows the line is for others
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit("the sender went away")
        line += byte
    return line


def _answer(row: "dict[str, object]") -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
