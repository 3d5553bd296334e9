"""What the stage store has saved a sweep."""

from dataclasses import dataclass

import pandas as pd

LEAST_S = 0.01
"""Less than this is rounding of the clock."""


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """Training that was found in the store instead of being done again."""

    trials: int
    """That took their student, or part of its training, from the store."""
    of: int
    """Finished trials of the search; champions that are trained again and controls are not among them."""
    seconds: float
    """Training seconds that they did not spend, the teacher's not counted."""

    def __str__(self) -> str:
        return (
            f"reuse: {self.trials} of {self.of} trials took their student from the store,"
            f" {self.seconds:,.{0 if self.seconds >= 10 else 1}f} s saved"
        )


def reuse(frame: pd.DataFrame) -> Reuse:
    """Sum up the finished candidates of one sweep.

    A candidate's `reused_time_s` is what was found of its own training and of the teacher's; every trial of a sweep
    finds the teacher, so that its `train_time_s` is taken off. What is left is the trial's own.

    Args:
        frame: one row per candidate, the teacher among them; columns `stage`, `status`, `reused_time_s`, and the
            teacher's `train_time_s`.
    """
    done = frame[frame["status"] == "finished"]
    teacher = done.loc[done["stage"] == "teacher", "train_time_s"]
    candidates = done[done["stage"] == "candidate"]
    if "control" in candidates.columns:
        candidates = candidates[candidates["control"].isna()]
    if candidates.empty:
        return Reuse(trials=0, of=0, seconds=0.0)
    own = (candidates["reused_time_s"] - (float(teacher.iloc[0]) if len(teacher) else 0.0)).clip(lower=0.0)
    found = own[own > LEAST_S]
    return Reuse(trials=len(found), of=len(candidates), seconds=float(found.sum()))
