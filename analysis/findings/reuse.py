"""The training time that the store of finished stages has saved a sweep."""

from dataclasses import dataclass

import pandas as pd

from analysis.reading.rows import finished_runs

LEAST_S = 0.01  # less than this is a rounding error of the clock


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """Training that was found in the store instead of being repeated."""

    trials: int
    """Trials that took their student, or part of its training, from the store."""
    of: int
    """All finished trials of the search, without retrained champions and control arms."""
    seconds: float
    """Seconds of training that these trials saved; the teacher's training is not counted."""

    def __str__(self) -> str:
        return (
            f"reuse: {self.trials} of {self.of} trials took their student from the store,"
            f" {self.seconds:,.{0 if self.seconds >= 10 else 1}f} s saved"
        )


def reuse(frame: pd.DataFrame) -> Reuse:
    """The training that the finished candidates of one sweep took from the store.

    A candidate's `reused_time_s` covers its own training and the teacher's. Every trial of a sweep finds its teacher in
    the store, so the teacher's `train_time_s` is subtracted; the rest is the trial's own.

    Args:
        frame: one row per candidate and one for the teacher; columns `stage`, `status`, `reused_time_s`, and the
            teacher's `train_time_s`.
    """
    teacher = finished_runs(frame, "teacher")["train_time_s"]
    candidates = finished_runs(frame)
    if "control" in candidates.columns:
        candidates = candidates[candidates["control"].isna()]
    if candidates.empty:
        return Reuse(trials=0, of=0, seconds=0.0)
    own = (candidates["reused_time_s"] - (float(teacher.iloc[0]) if len(teacher) else 0.0)).clip(lower=0.0)
    found = own[own > LEAST_S]
    return Reuse(trials=len(found), of=len(candidates), seconds=float(found.sum()))
