"""Draw a running sweep on one screen of a terminal, never with more lines than it has."""

from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from analysis.pages.terminal import describe_lesson, describe_recipe
from sweeps.display.durations import Range, clock
from sweeps.display.standing import STATES, Standing
from trainables.config.escaping import plain
from trainables.records.latency import teacher_ratio

MB = 1e6
# Only failures stand out: stopped and infeasible trials are a normal part of a search.
STATE_STYLES = {"finished": "green", "stopped": "dim", "infeasible": "dim", "failed": "yellow"}
LEAST_ROWS = 3  # a front with less room is left out
TABLE_LINES = 3  # title, heading and rule


def screen(standing: Standing, use: str, *, width: int, height: int) -> RenderableType:
    """The sweep as it stands, in at most `height - 1` lines of `width` columns.

    Front and running trials share the lines that the fixed ones leave; running trials are cut first.

    Args:
        standing: what to draw.
        use: how busy the machine is, in words.
        width: columns of the terminal.
        height: lines of the terminal; the cursor needs the last one.
    """
    lines: list[RenderableType] = [_line(standing.title, "bold")]
    if standing.teacher:
        lines.append(_line(standing.teacher))
    lines += [_bar(standing, width), _states(standing)]
    lines += [_named("use", use)] if use else []
    if (reused := standing.reused()).trials:
        lines.append(_named("reuse", str(reused).removeprefix("reuse: ")))
    room = height - 1 - len(lines)
    front, running = standing.front(), list(standing.running.values())
    rows = 0
    if len(front) and room > TABLE_LINES + LEAST_ROWS:
        # Running trials keep a third of the room; the table takes the rest, less its own lines and one to spare.
        rows = min(len(front), max(LEAST_ROWS, room - TABLE_LINES - 1 - min(len(running), room // 3)))
        air = [Text("")] if room - TABLE_LINES - rows - len(running) >= 2 else []
        some = f", {rows} of {len(front)}" if rows < len(front) else ""
        heading = _line(f"front so far{some} (ms: p50 of one image; x: of the teacher's)", "bold")
        lines += [*air, heading, front_so_far(front, standing, rows), *air]
        room -= TABLE_LINES + rows + 2 * len(air)
    lines += _running(running, room)
    return Group(*lines[: height - 1])


def ended(standing: Standing) -> RenderableType:
    """What stays of `screen` when the sweep has ended: what ran, how far and how long."""
    gone = clock(standing.elapsed_s)
    return Group(_line(standing.title, "bold"), _line(f"{standing.done}/{standing.trials} done in {gone}"))


def remaining(left: Range | None) -> str:
    """The time left in words; empty while it is unknown.

    Example:
        >>> remaining(Range(290, 370, 485))
        'about 6:10 left (4:50 to 8:05)'
        >>> remaining(Range(290, 290, 290))
        '4:50 left'
    """
    if left is None:
        return ""
    if left.high < 1:
        return "finishing"
    if left.low == left.high:
        return f"{clock(left.expected)} left"
    return f"about {clock(left.expected)} left ({clock(left.low)} to {clock(left.high)})"


def spread(count: int, shown: int) -> list[int]:
    """Indices of the `shown` of `count` rows to show: both ends, and evenly spaced ones between them.

    Example:
        >>> spread(10, 4), spread(2, 4)
        ([0, 3, 6, 9], [0, 1])
    """
    if count <= shown:
        return list(range(count))
    return sorted({round(i * (count - 1) / max(1, shown - 1)) for i in range(shown)})


def front_so_far(front: pd.DataFrame, standing: Standing, rows: int) -> Table:
    """A table of the front's members: validation accuracy, latency, size; the test split stays hidden until the end."""
    teacher = standing.teacher_metrics()
    shown = front.iloc[spread(len(front), rows)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for header in ("trial", "val %", "ms", "x", "MB", "x", "T", "alpha"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("pruning", no_wrap=True)
    for label, row in shown.iterrows():
        smaller = f"{row['size_bytes'] / teacher['size_bytes']:.2f}" if teacher else ""
        table.add_row(
            str(label),
            f"{100 * row['val_accuracy']:.2f}",
            f"{row['latency_p50_ms']:#.3g}",
            f"{teacher_ratio(row.to_dict()):.2f}",
            f"{row['size_bytes'] / MB:#.3g}",
            smaller,
            *describe_lesson(row),
            describe_recipe(row),
        )
    return table


def _bar(standing: Standing, width: int) -> RenderableType:
    words = [f"{standing.done}/{standing.trials} done", f"{clock(standing.elapsed_s)} gone", remaining(standing.left())]
    text = ", ".join(word for word in words if word)
    line = Table.grid(padding=(0, 2))
    free = max(8, width - len(text) - 3)
    line.add_row(ProgressBar(total=standing.trials, completed=standing.done, width=min(30, free)), _line(text))
    return line


def _states(standing: Standing) -> Text:
    text = Text("trials    ", no_wrap=True, overflow="ellipsis")
    for state in STATES:
        if standing.states[state] or state == "finished":
            text.append(f"{standing.states[state]} {state}   ", STATE_STYLES[state])
    return text.append(f"{len(standing.running)} running")


def _running(running: Sequence[str], room: int) -> list[RenderableType]:
    """One line per running trial, as many as there is room for."""
    if room < 1 or not running:
        return []
    shown = running if len(running) <= room else running[: room - 1]
    lines: list[RenderableType] = [_line(text, "dim") for text in shown]
    if len(shown) < len(running):
        lines.append(_line(f"      and {len(running) - len(shown)} more running", "dim"))
    return lines


def _named(name: str, text: str) -> Text:
    return _line(f"{name:<8}  {text}")


def _line(text: str, style: str = "") -> Text:
    return Text(plain(text), style=style, no_wrap=True, overflow="ellipsis")
