"""The doors that texts of others leave through: terminal and CSV; Markdown and HTML have theirs in `pages.markdown`."""

from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from trainables.config.escaping import csv_cell, plain
from trainables.files import write_text

if TYPE_CHECKING:
    import pandas as pd


class Terminal(Console):
    """A console that prints texts as they are: brackets and colons are no markup, control characters are left out."""

    def __init__(self, **settings: Any) -> None:
        """`settings` are those of a rich `Console`."""
        super().__init__(**{"highlight": False, **settings}, markup=False, emoji=False)

    def render_str(self, text: str, **settings: Any) -> Text:
        """As in rich; every text that is printed, in tables, too, comes through here."""
        return super().render_str(plain(text), **settings)


def say(text: str) -> None:
    """Print one line."""
    print(plain(text))


def write_csv(frame: "pd.DataFrame", path: Path, *, index: bool) -> None:
    """Write a table for people, in which no text is a formula."""
    shown = frame.rename(columns=_cell, index=_cell if index else None)
    for name in shown.columns:
        if shown[name].dtype.kind not in "biufc":
            shown[name] = shown[name].map(_cell, na_action="ignore")
    write_text(path, shown.to_csv(index=index))


def _cell(value: Hashable) -> Hashable:
    return csv_cell(value) if isinstance(value, str) else value
