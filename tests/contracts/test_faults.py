"""Every bad input and fault of `faults.py` is answered by exit code 2 and one line; all faults stand in FAULTS.md."""

from pathlib import Path

import faults
import pytest
import ray
from other_faults import HEAD, OTHER_FAULTS, OtherFault

from trainables.stages.data.sources import downloads


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def no_sweep_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("bad input was accepted"))
    monkeypatch.setattr(downloads, "ARCHIVES", dict(downloads.ARCHIVES))


def test_there_are_at_least_sixty() -> None:
    assert len({(fault.command, fault.words, fault.what) for fault in faults.FAULTS}) >= 60


@pytest.mark.parametrize(
    ("number", "fault"),
    list(enumerate(faults.FAULTS, 1)),
    ids=[f"{fault.command} {fault.words} {fault.what}".strip() for fault in faults.FAULTS],
)
def test_answered_by_one_line(number: int, fault: faults.Fault, tmp_path: Path, data_dir: Path) -> None:
    code, said = faults.line_of(fault, tmp_path, data_dir)
    assert (code, said.count("\n")) == (2, 1), said
    assert "secret" not in said
    row = faults.row(number, fault, said)
    if "argument" in said:  # argparse's own words differ between versions of Python
        row, _, _ = row.rpartition(" | ")
    assert row in faults.TABLE.read_text(encoding="utf-8"), "run `python tests/contracts/faults.py`"


def test_every_other_fault_is_in_the_table_and_has_its_test() -> None:
    table = faults.TABLE.read_text(encoding="utf-8")
    rows = "\n".join((*HEAD, *(fault.row() for fault in OTHER_FAULTS)))
    assert table.endswith(f"\n\n{rows}\n"), "run `python tests/contracts/faults.py`"
    assert [fault.test for fault in OTHER_FAULTS if not fault.has_test()] == []


def test_a_test_that_is_not_there_would_be_seen() -> None:
    assert not OtherFault("a", "b", "tests/contracts/test_faults.py::test_that_nobody_wrote").has_test()
    assert OtherFault("a | b", "c", "x").row() == "| a \\| b | c | `x` |"
