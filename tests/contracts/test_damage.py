"""Damaged files are read as what they were, made again or refused: never a traceback, never a wrong result."""

from pathlib import Path

import pytest

from tests.contracts.damage import Format, attack, formats, outcome

NAMES = sorted(formats(Path("unused")))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it reads all the same
def test_damaged_files_are_answered(name: str, tmp_path: Path) -> None:
    assert set(attack(name, 10, tmp_path, seed=1)) <= {"right", "refused"}


def test_what_may_not_come_is_found(tmp_path: Path) -> None:
    form = Format(file=tmp_path / "file", read=lambda: int((tmp_path / "file").read_text()), is_right=lambda n: n == 3)
    assert outcome(form, b"3") == "right"
    assert outcome(form, b"4") == "wrong: 4"
    assert outcome(form, b"x").startswith("ValueError: invalid literal")
