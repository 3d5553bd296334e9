import pandas as pd
import pytest

from analysis.findings.reuse import reuse

TEACHER = {"stage": "teacher", "status": "finished", "train_time_s": 100.0, "reused_time_s": 0.0}


def trial(reused_s: float, status: str = "finished", **more: object) -> dict[str, object]:
    return {"stage": "candidate", "status": status, "train_time_s": 60.0, "reused_time_s": reused_s, **more}


def test_every_trial_finds_the_teacher_which_is_no_hit() -> None:
    found = reuse(pd.DataFrame([TEACHER, trial(100.0), trial(100.0), trial(140.0), trial(160.0)]))
    assert (found.trials, found.of) == (2, 4)
    assert found.seconds == pytest.approx(40 + 60)
    assert str(found) == "reuse: 2 of 4 trials took their student from the store, 100 s saved"


def test_only_finished_trials_of_the_search_count() -> None:
    rows = [TEACHER | {"control": "teacher"}, trial(150.0), trial(float("nan"), "stopped"), trial(0.0, "failed")]
    found = reuse(pd.DataFrame([*rows, trial(160.0, control="not_pruned")]))
    assert (found.trials, found.of, found.seconds) == (1, 1, 50.0)


def test_a_sweep_without_a_finished_trial_has_saved_nothing() -> None:
    assert str(reuse(pd.DataFrame([TEACHER]))) == "reuse: 0 of 0 trials took their student from the store, 0.0 s saved"
