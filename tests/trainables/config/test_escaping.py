from pathlib import Path

import pytest

from trainables.config.escaping import csv_cell, hide_password, plain, without_user

ROOT = Path(__file__).parents[3]
DOORS = {"doors.py": ("Console(", "print("), "__main__.py": ("print(",), "interrupts.py": ("print(",)}
"""Modules that may print past `say` and `Terminal`: the doors themselves, constant texts, JSON, an error that is
escaped."""


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql://me:se@cret@db:5432/mlflow", "postgresql://me:***@db:5432/mlflow"),
        ("http://me:p/w@head:5000", "http://me:***@head:5000"),
        ("https://t0ken@head/x", "https://***@head/x"),
        ("mysql+pymysql://u:p@h/d; name another", "mysql+pymysql://u:***@h/d; name another"),
        ("mssql://h/d?user=u&password=p&x=1", "mssql://h/d?user=u&password=***&x=1"),
        ("API request to http://me:pw@head/api failed", "API request to http://me:***@head/api failed"),
        ("sqlite:////home/me/a:b@c/mlflow.db", "sqlite:////home/me/a:b@c/mlflow.db"),
        ("postgresql://me@db/mlflow", "postgresql://me@db/mlflow"),
        ("http://head:5000/#/experiments/1/runs?viewStateShareKey=night", None),
        ("night@balanced, s3://bucket/runs", None),
    ],
)
def test_a_password_is_hidden_and_nothing_else(text: str, hidden: str | None) -> None:
    assert hide_password(text) == (hidden or text)
    assert hide_password(hide_password(text)) == hide_password(text)


def test_an_address_of_a_page_has_no_user() -> None:
    assert (
        without_user("http://me:s@cret@head:5000/x") == without_user("http://t0ken@head:5000/x") == "http://head:5000/x"
    )


def test_a_terminal_is_sent_no_escape_codes() -> None:
    assert plain("a\x1b]0;owned\x07b\rc\u202ed\x9be\tf\n") == "a]0;ownedbcde\tf\n"


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1"])
def test_no_text_is_a_formula(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


def test_texts_leave_through_the_doors_alone() -> None:
    """A bare `print` or a rich `Console` of its own would let markup, escape codes and passwords through."""
    for package in ("analysis", "sweeps"):
        for file in (ROOT / package).rglob("*.py"):
            if file.name in ("mps.py", "shipping.py"):  # a daemon's two words; a script that is shipped
                continue
            for call in ("Console(", "print(", ".to_csv("):
                for line in file.read_text(encoding="utf-8").splitlines():
                    words = line.strip()
                    found = words.startswith(call) or f" {call}" in words or (call == ".to_csv(" and call in words)
                    allowed = call in DOORS.get(file.name, ()) or file.name == "doors.py" or words.startswith("class ")
                    assert not found or allowed, f"{file.relative_to(ROOT)}: {words}"
