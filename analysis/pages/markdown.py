"""Markdown made of texts and numbers, and a page of HTML made of Markdown."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt

STYLE = """
body { max-width: 1000px; margin: 2em auto; padding: 0 1.2em; color: #1a1a1a;
  font: 16px/1.5 Helvetica, Arial, sans-serif; }
h1 { font-size: 26px; } h2 { font-size: 20px; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 14px; } td, th { padding: 3px 9px; border-bottom: 1px solid #e6e6e6; }
th { text-align: left; background: #f5f5f5; } img { max-width: 100%; } code { background: #f3f3f3; padding: 1px 4px; }
pre { background: #f3f3f3; padding: 10px; white-space: pre-wrap; } pre code { padding: 0; }
"""


def safe(text: Any) -> str:
    """Text from outside, escaped so that Markdown and HTML take all of it as plain text."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+!|~$" else letter for letter in str(text))
    return escape(" ".join(escaped.split()), quote=False)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the caller has escaped its cells."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows)]
    return "\n".join(lines)


def frame_table(frame: pd.DataFrame, headings: Mapping[str, str], cell: Callable[[str, Any], str]) -> str:
    """A frame as a Markdown table, one line per row.

    Args:
        frame: one record per row.
        headings: column -> heading, in the order to show.
        cell: column and value -> the text of a cell.
    """
    lines = ["| " + " | ".join(headings.values()) + " |", "|---" * len(headings) + "|"]
    for row in frame.to_dict("records"):
        lines.append("| " + " | ".join(cell(name, row[name]) for name in headings) + " |")
    return "\n".join(lines)


def page(text: str, title: str, folder: Path) -> str:
    """One HTML page made of Markdown; raw HTML in it stays text, and the folder's pictures are embedded.

    Args:
        text: the Markdown.
        title: of the page.
        folder: holds the PNG files that the Markdown shows.
    """
    body: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for picture in sorted(folder.glob("*.png")):
        content = base64.b64encode(picture.read_bytes()).decode()
        body = body.replace(f'src="{picture.name}"', f'src="data:image/png;base64,{content}"')
    # no picture or script from elsewhere, whatever a text from outside has made of itself
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = f"<body>\n{body}</body>"
    return f'<!doctype html>\n<html lang="en">\n<head>{head}<style>{STYLE}</style></head>\n{body}\n</html>\n'


def percent(share: Any) -> str:
    """A share from 0 to 1 in percent, or a dash."""
    return number(None if share is None else 100 * share, ".2f")


def number(value: Any, spec: str) -> str:
    """A number formatted by `spec`, or a dash where there is none."""
    return format(float(value), spec) if value is not None and value == value else "-"
