from pathlib import Path

import pytest

from sweeps.running.runtime_cells import _called, done
from trainables.records.encoding import to_json
from trainables.records.trial import TrialRecord


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


@pytest.mark.parametrize(
    ("stage", "number", "folder", "name"),
    [
        ("teacher", None, "teacher", "alexnet (teacher)"),
        ("candidate", 3, "00003", "alexnet_small (trial 3)"),
        ("candidate", None, "3-not_pruned-seed1", "alexnet_small (3-not_pruned-seed1)"),
    ],
)
def test_a_network_is_called_what_it_is(stage: str, number: int | None, folder: str, name: str) -> None:
    """Champions and controls have no trial number either, and are no teachers."""
    record = TrialRecord(
        key="night/x", trial_number=number, stage=stage, status="finished", reason="",
        params={"teacher_model": "alexnet", "student_model": "alexnet_small"}, metrics={}, tags={}, curve=(), files=(),
        started=0, ended=1,
    )  # fmt: skip
    assert _called(record, Path(folder)) == name
