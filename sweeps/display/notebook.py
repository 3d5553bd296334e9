"""A sweep in a notebook: one place in the output of its cell, which is drawn anew while the sweep runs."""

import contextvars
import io
import threading
from collections.abc import Callable
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from analysis.reading.doors import Terminal

COLUMNS, LINES = 110, 30  # of a cell's output
REDRAW_S = 1.0
# line-height: rules of tables must meet; the colours are those of a light page, as rich has them
PRE = (
    '<pre style="font-family: Menlo, Consolas, DejaVu Sans Mono, monospace; line-height: 1.25; white-space: pre;'
    ' overflow-x: auto; margin: 0">{code}</pre>'
)


class Place:
    """A part of a cell's output that can be drawn again and again."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn = False

    def say(self, text: str) -> None:
        """Draw one line, unless the sweep has been drawn: then its last line says more."""
        if not self._drawn:
            self._show(Text(text, style="dim"))

    def draw(self, content: RenderableType) -> None:
        """Draw the sweep."""
        self._drawn = True
        self._show(content)

    def _show(self, content: RenderableType) -> None:
        from IPython.display import display  # there is one where a notebook runs

        shown = as_html(content)
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


def as_html(content: RenderableType) -> dict[str, str]:
    """What rich would draw on a terminal, as HTML and as plain text."""
    console = Terminal(record=True, file=io.StringIO(), width=COLUMNS, color_system="truecolor", force_jupyter=False)
    console.print(content)
    return {
        "text/html": console.export_html(inline_styles=True, code_format=PRE, clear=False),
        "text/plain": console.export_text(),
    }


class Redrawing:
    """Draw once a second, in a thread, so that the clock keeps running while a trial is delivered."""

    def __init__(self, place: Place, content: Callable[[], RenderableType]) -> None:
        self._place, self._content = place, content
        self._ended = threading.Event()
        # the thread writes to the cell that runs: Jupyter keeps its number in a context variable
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._draw,), name="notebook", daemon=True)

    def start(self) -> None:
        """Draw until `stop`."""
        self._place.draw(self._content())
        self._thread.start()

    def stop(self, last: RenderableType) -> None:
        """Draw `last`, which stays."""
        self._ended.set()
        self._thread.join()
        self._place.draw(last)

    def _draw(self) -> None:
        while not self._ended.wait(REDRAW_S):
            self._place.draw(self._content())
