from pathlib import Path

import pytest

from sweeps.runtime_sweep import done
from trainables.records import TrialRecord, to_json


@pytest.mark.parametrize(
    ("status", "verdict", "expected"),
    [
        ("finished", "clean", (True, True)),
        ("finished", "noisy: p50 within 4.0 %", (True, False)),
        ("infeasible", "", (False, False)),
        ("failed", "", (False, False)),
    ],
)
def test_cells_in_doubt_are_measured_again_where_that_is_asked_for(
    tmp_path: Path, status: str, verdict: str, expected: tuple[bool, bool]
) -> None:
    record = TrialRecord(
        key="night/runtimes/cell", trial_number=None, stage="runtime", status=status, reason="", params={}, metrics={},
        tags={"latency_verdict": verdict} if verdict else {}, curve=(), files=(), started=0, ended=1,
    )  # fmt: skip
    (tmp_path / "record.json").write_text(to_json(record))
    for again, is_done in zip((False, True), expected, strict=True):
        assert done(tmp_path, again=again) == is_done


def test_a_cell_without_a_record_is_not_done(tmp_path: Path) -> None:
    assert not done(tmp_path, again=False)
