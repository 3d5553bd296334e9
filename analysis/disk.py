"""What a folder of sweeps takes on disk: trials share their files with the store, so each file counts once."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from analysis.reading.facts import MB
from trainables.layout import SWEEPS


@dataclass(frozen=True, kw_only=True)
class Usage:
    """One part of the folder."""

    place: str
    """Relative to the folder of the sweeps."""
    bytes: int
    """Of its files, each file once however many names it has."""
    own_bytes: int
    """What deleting this part alone would give back: files that have no name elsewhere in the folder."""
    files: int


def usage(out: Path) -> list[Usage]:
    """Every part of a folder of sweeps, the largest first: each sweep by its name, all else by its first folder.

    Raises:
        ValueError: if there is no such folder.
    """
    if not out.is_dir():
        raise ValueError(f"out={out} is no folder; name the folder of the sweeps.")
    parts: dict[str, dict[tuple[int, int], int]] = {}
    names: dict[tuple[int, int], int] = {}
    placed: dict[str, dict[tuple[int, int], int]] = {}
    for path, stat in _files(out):
        place = _place(path.relative_to(out))
        file = stat.st_dev, stat.st_ino
        parts.setdefault(place, {})[file] = stat.st_size
        names[file] = names.get(file, 0) + 1
        here = placed.setdefault(place, {})
        here[file] = here.get(file, 0) + 1
    rows = [
        Usage(
            place=place,
            bytes=sum(files.values()),
            own_bytes=sum(size for file, size in files.items() if placed[place][file] == names[file]),
            files=len(files),
        )
        for place, files in parts.items()
    ]
    return sorted(rows, key=lambda row: row.bytes, reverse=True)


def total(out: Path) -> int:
    """Bytes of all files, each once."""
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for _, stat in _files(out)}.values())


def usage_table(rows: list[Usage]) -> Table:
    """`usage` for the terminal."""
    caption = "MB: 1,000,000 bytes; alone: what deleting this part alone would free"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    table.add_column("part")
    for heading in ("MB", "alone", "files"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(escape(row.place), f"{row.bytes / MB:,.1f}", f"{row.own_bytes / MB:,.1f}", f"{row.files:,}")
    return table


def _place(relative: Path) -> str:
    deep = 2 if relative.parts[0] == SWEEPS and len(relative.parts) > 2 else 1
    return "/".join(relative.parts[:deep])


def _files(out: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, _, names in os.walk(out):
        for name in names:
            path = Path(folder) / name
            try:
                yield path, path.lstat()
            except FileNotFoundError:  # a running sweep moves its files into place
                continue
