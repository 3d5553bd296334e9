"""MLflow's SQLite file: made whole or not at all, by one process at a time, and fitted to where OUT lies now.

The tables are MLflow's own; pyproject.toml bounds its version because of them (tests/contracts/test_private_parts.py).
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from trainables.layout import ARTIFACTS, SQLITE, database_path, sqlite_uri
from trainables.locks import file_lock

# Columns with addresses of files, which MLflow records absolute.
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


@contextmanager
def opening(uri: str, artifacts: Path, *, connect: Callable[[str], object]) -> Iterator[None]:
    """Prepare a local database, and keep other processes out until MLflow has been connected to it once.

    MLflow makes and migrates its tables at the first connection: two processes that do so at once break the database,
    and one that is killed meanwhile leaves it broken.

    Args:
        uri: of the store; nothing is done for other than `sqlite:///PATH`.
        artifacts: OUT/artifacts; if the database is OUT's own, its artifacts are recorded to lie there.
        connect: connects MLflow to an address for the first time.
    """
    if not uri.startswith(SQLITE):
        yield
        return
    database = database_path(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    undecoded = Path(uri.removeprefix(SQLITE)).parent  # which MLflow makes, and leaves empty
    strays = [folder for folder in (undecoded, *undecoded.parents) if not folder.exists()]
    with file_lock(database.with_name(f".{database.name}.lock")):
        if not database.exists():
            part = database.with_name(f".{database.name}.part")
            part.unlink(missing_ok=True)
            connect(sqlite_uri(part))
            part.replace(database)
        with closing(sqlite3.connect(database, timeout=20)) as connection:
            # write-ahead logging: 8 instead of 24 ms per batch, and readers do not block
            connection.execute("PRAGMA journal_mode=WAL")
            if database.parent.resolve() == artifacts.resolve().parent:
                _relocate(connection, artifacts.resolve().as_uri())
        yield
    for folder in strays:
        with suppress(OSError):
            folder.rmdir()


def _relocate(connection: sqlite3.Connection, place: str) -> None:
    """Record `place` wherever an earlier artifact folder of this OUT is recorded, which has been moved or copied."""
    known = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    for (old,) in known:
        if old and old != place and old.startswith("file:") and old.endswith(f"/{ARTIFACTS}"):
            for table, column in PLACES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                    f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (place, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
    connection.commit()
