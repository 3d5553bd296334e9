"""A stage of three steps for the tests of the store."""

import json
import time
from collections.abc import Generator
from pathlib import Path


def run(generator: Generator[int, None, Path]) -> tuple[list[int], Path]:
    """What a generator yields, and what it returns."""
    reports = []
    while True:
        try:
            reports.append(next(generator))
        except StopIteration as end:
            return reports, end.value


def counting(folder: Path) -> Generator[int, None, None]:
    """Three steps, each kept on disk: what an interrupted attempt left is not done again."""
    log = folder / "steps"
    done = len(log.read_text().splitlines()) if log.exists() else 0
    for step in range(done, 3):
        with log.open("a") as file:
            file.write(f"{step}\n")
        yield step
    (folder / "record.json").write_text(json.dumps({"steps": 3}))


def flip(path: Path) -> None:
    """Change one bit of a file; later than the file system's clock tick, as any disk would."""
    time.sleep(0.02)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
