"""A sweep that has to stop in time: how many trials fit, and how long it takes to begin."""

import dataclasses
import json
import time
from pathlib import Path

from sweeps.config import SweepConfig
from sweeps.durations import in_words
from sweeps.plan import Plan
from trainables.records import to_json, write_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadline:
    """When a sweep has to stop."""

    at: float
    """On the clock of `time.monotonic`."""
    trial_s: float
    """Expected seconds of a trial; one that would end too late is not started."""

    def left(self) -> float:
        """Seconds, 0 when it is over."""
        return max(0.0, self.at - time.monotonic())

    def over(self) -> bool:
        """Whether no further trial can be started."""
        return self.left() < self.trial_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedSweep(SweepConfig):
    """A sweep that stops in time, with as many trials as are thought to fit."""

    deadline: Deadline


def trials_within(seconds: float, plan: Plan, *, budget_s: float) -> int:
    """How many trials fit: floor((seconds - teacher - labels - champions - start) / seconds a trial adds).

    A trial adds what it does beside others divided by the number of those, and the time it measures alone.

    Raises:
        ValueError: if it is none; the message says what one needs.
    """
    before = plan.teacher_s.expected + plan.labels_s.expected + plan.champions_s.expected + plan.start_s
    one = plan.trial_s.expected
    if seconds - before < one:
        needs = budget_s - seconds + before + one
        champions = f" champions {in_words(plan.champions_s.expected)}," if plan.champion_runs else ""
        raise ValueError(
            f"--budget {in_words(budget_s)}: one trial needs about {in_words(needs)} (teacher"
            f" {in_words(plan.teacher_s.expected)}, soft labels {in_words(plan.labels_s.expected)}, trial"
            f" {in_words(one)},{champions} probe and start {in_words(budget_s - seconds + plan.start_s)})."
        )
    return int((seconds - before) / ((one - plan.alone_s) / plan.concurrency + plan.alone_s) + 1e-9)


def start_seconds(out: Path) -> float | None:
    """What the last sweep under `out` needed from launch to its first trial; None if none has told."""
    try:
        return float(json.loads((out / "start.json").read_text(encoding="utf-8"))["start_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_start(out: Path, seconds: float) -> None:
    """Keep it for the next plan; a disk that takes nothing costs a plan its measured start, nothing else."""
    try:
        write_text(out / "start.json", to_json({"start_s": round(seconds, 2)}))
    except OSError:
        return
