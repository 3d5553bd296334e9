"""How much disk space a folder of sweeps takes: trials share files with the store, so each file counts once."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainables.layout import SWEEPS


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The disk space of one part of the folder."""

    place: str
    """Its path, relative to the folder of the sweeps."""
    bytes: int
    """Size of its files, each counted once however many names (hard links) it has."""
    own_bytes: int
    """What deleting this part alone would free: files that have no name elsewhere in the folder."""
    files: int
    """Number of files, each counted once."""


def usage(out: Path) -> list[Usage]:
    """The parts of a folder of sweeps, the largest first: each sweep is one, and so is each other top-level entry.

    Raises:
        ValueError: if there is no such folder.
    """
    if not out.is_dir():
        raise ValueError(f"out={out} is no folder; name the folder of the sweeps.")
    # A file is a pair of device and inode: hard links are several names of one file.
    sizes: dict[str, dict[tuple[int, int], int]] = {}
    names: Counter[tuple[int, int]] = Counter()
    names_here: defaultdict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    for path, stat in _files(out):
        place = _place(path.relative_to(out))
        file = stat.st_dev, stat.st_ino
        sizes.setdefault(place, {})[file] = stat.st_size
        names[file] += 1
        names_here[place][file] += 1
    rows = [
        Usage(
            place=place,
            bytes=sum(files.values()),
            own_bytes=sum(size for file, size in files.items() if names_here[place][file] == names[file]),
            files=len(files),
        )
        for place, files in sizes.items()
    ]
    return sorted(rows, key=lambda row: row.bytes, reverse=True)


def total(out: Path) -> int:
    """Bytes of all files in the folder, each counted once."""
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for _, stat in _files(out)}.values())


def _place(relative: Path) -> str:
    # Sweeps have a folder each below sweeps/; files directly in sweeps/ belong to none.
    deep = 2 if relative.parts[0] == SWEEPS and len(relative.parts) > 2 else 1
    return "/".join(relative.parts[:deep])


def _files(out: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, _, names in os.walk(out):
        for name in names:
            path = Path(folder) / name
            try:
                yield path, path.lstat()
            except FileNotFoundError:  # a running sweep has moved the file into its final place
                continue
