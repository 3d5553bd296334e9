"""Records as JSON text and back (standard library only)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from trainables.layout import RECORD


def to_json(record: Any) -> str:
    """A record, or a plain mapping, as JSON text; paths become strings, tuples lists."""
    row = dataclasses.asdict(record) if dataclasses.is_dataclass(record) and not isinstance(record, type) else record
    return json.dumps(row, indent=1, default=str)


def read_row(folder: Path) -> dict[str, Any]:
    """The `record.json` of a folder."""
    row: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return row
