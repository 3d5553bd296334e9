import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from rich.table import Table

from analysis.reading.doors import Terminal, say, write_csv

HOSTILE = "a [red]x[/] [/x] :smile: \x1b[2J http://me:pw@head"
SHOWN = "a [red]x[/] [/x] :smile: [2J http://me:***@head"


@pytest.mark.parametrize("force_terminal", [True, False])
def test_a_text_is_printed_as_it_is(force_terminal: bool) -> None:
    file = io.StringIO()
    console = Terminal(file=file, width=200, force_terminal=force_terminal, color_system=None)
    console.print(HOSTILE, style="bold", soft_wrap=True)
    table = Table(title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    assert file.getvalue().count(SHOWN) == 5
    assert "\x1b[2J" not in file.getvalue()


def test_a_line_is_said_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    assert capsys.readouterr().out == f"{SHOWN}\n"


def test_a_table_holds_no_formula(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"=name": ["=1+1", "-0.5", None], "number": [-1.5, 2.0, float("nan")]},
        index=pd.Index(["@a", "b", "c"], name="id"),
    )
    write_csv(frame.convert_dtypes(), tmp_path / "x.csv", index=True)
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["id", "'=name", "number"], ["'@a", "'=1+1", "-1.5"], ["b", "-0.5", "2.0"], ["c", "", ""]]
