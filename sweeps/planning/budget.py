"""A sweep that has to stop in time: how many trials fit, and how long it takes to begin."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sweeps.display.durations import in_words
from sweeps.planning.cost import Hits, Plan
from sweeps.search.config import SweepConfig
from trainables.files import write_text
from trainables.layout import IDENTITY, SPENT, START
from trainables.records.encoding import to_json

FINISH_S = 10.0
"""Kept free at a budget's end: front, report and registered models took 5 to 10 s on two cores."""
MIN_TRIALS = 10
"""A search of fewer trials tells little: their epochs are cut to have as many, to a quarter at most."""
EPOCH_SHARES = (1.0, 0.75, 0.5, 0.25)
EPOCHS = ("student_epochs", "recovery_epochs")
"""In the folder of a sweep whose command was cut off before its time was over: the seconds it had."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadline:
    """When a sweep has to stop."""

    at: float
    """On the clock of `time.monotonic`."""
    trial_s: float
    """Expected seconds of a trial; one that would end too late is not started."""
    champions_s: float = 0.0
    """Expected seconds of champions and controls, which the search leaves to them."""
    budget_s: float = 0.0
    """What was asked for, until `FINISH_S` after `at`."""

    def left(self) -> float:
        """Seconds, 0 when it is over."""
        return max(0.0, self.at - time.monotonic())

    def spent(self) -> float:
        """Seconds of the budget that are over, those of commands that were cut off included."""
        return self.budget_s - FINISH_S - self.left()

    def search_left(self) -> float:
        """Seconds for the search, 0 when it is over."""
        return max(0.0, self.left() - self.champions_s)

    def over(self) -> bool:
        """Whether the search can start no further trial."""
        return self.search_left() < self.trial_s


def fit_to_budget(
    config: SweepConfig,
    plan_of: Callable[[SweepConfig], tuple[Plan, Hits]],
    *,
    at: float,
    budget_s: float,
    shares: Sequence[float] = EPOCH_SHARES,
) -> tuple[SweepConfig, Deadline]:
    """The sweep with as many trials as fit until `at`, and with shorter ones where fewer than `MIN_TRIALS` would.

    Student and recovery epochs are cut together. A sweep that has begun keeps the epochs it has begun with, and adds
    no trial where what a command that was cut off has left of the budget is too short for one.

    Args:
        config: with the epochs asked for.
        plan_of: a sweep -> its plan, and what is there of it.
        at: on the clock of `time.monotonic`.
        budget_s: what was asked for, for the message.
        shares: of the epochs, the largest first.

    Raises:
        ValueError: if not one trial fits.
    """
    begun = begun_with(config)
    base = config.search.base.replace(**begun or {})
    for share in (1.0,) if begun else shares:
        epochs = {name: max(1, round(share * base.flat()[name])) for name in EPOCHS if base.flat()[name]}
        shorter = config.replace(base=base.replace(**epochs))
        plan, hits = plan_of(shorter)
        deadline = Deadline(
            at=at - FINISH_S,
            trial_s=plan.trial_s.expected,
            champions_s=plan.champions_s.expected,
            budget_s=budget_s,
        )
        trials, needs = trials_within(deadline.left(), plan), budget_s - deadline.left()
        if trials >= MIN_TRIALS:
            break
    if trials == 0 and not (hits.trials and spent_seconds(config.folder, budget_s)):
        raise ValueError(_too_short(plan, budget_s, needs))
    return shorter.replace(trials=hits.trials + trials), deadline


def begun_with(config: SweepConfig) -> dict[str, int] | None:
    """The epochs of a sweep that has begun; None if it has not, or cannot be read: its own start says so."""
    try:
        base = json.loads((config.folder / IDENTITY).read_text(encoding="utf-8"))["settings"]["base"]
        return {name: int(base[name]) for name in EPOCHS}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def spent_seconds(folder: Path, budget_s: float) -> float:
    """What a command of this sweep that was cut off had of its budget; 0 if the last one had all of it."""
    try:
        spent = float(json.loads((folder / SPENT).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
    return spent if spent < budget_s - FINISH_S else 0.0


def trials_within(seconds: float, plan: Plan) -> int:
    """How many trials fit: floor((seconds - teacher - labels - champions - start) / seconds a trial adds).

    A trial adds what it does beside others divided by the number of those, and the time it measures alone.
    """
    before = plan.teacher_s.expected + plan.labels_s.expected + plan.champions_s.expected + plan.start_s
    one = plan.trial_s.expected
    if seconds - before < one:
        return 0
    return int((seconds - before) / ((one - plan.alone_s) / plan.concurrency + plan.alone_s) + 1e-9)


def _too_short(plan: Plan, budget_s: float, gone_s: float) -> str:
    """What one trial needs of a budget of which `gone_s` are over."""
    before = plan.teacher_s.expected + plan.labels_s.expected + plan.champions_s.expected + plan.start_s
    champions = f" champions {in_words(plan.champions_s.expected)}," if plan.champion_runs else ""
    return (
        f"--budget {in_words(budget_s)}: one trial needs about {in_words(gone_s + before + plan.trial_s.expected)}"
        f" (teacher {in_words(plan.teacher_s.expected)}, soft labels {in_words(plan.labels_s.expected)}, trial"
        f" {in_words(plan.trial_s.expected)},{champions} probe and start {in_words(gone_s + plan.start_s)})."
    )


def start_seconds(out: Path) -> float | None:
    """What the last sweep under `out` needed from launch to its first trial; None if none has told."""
    try:
        return float(json.loads((out / START).read_text(encoding="utf-8"))["start_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_start(out: Path, seconds: float) -> None:
    """Keep it for the next plan; a disk that takes nothing costs a plan its measured start, nothing else."""
    try:
        write_text(out / START, to_json({"start_s": round(seconds, 2)}))
    except OSError:
        return
