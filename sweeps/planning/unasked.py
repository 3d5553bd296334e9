"""What a command without a preset, and without a GPU, runs: as much as ends in minutes, and a line that says so."""

import functools
import math
from collections.abc import Collection, Sequence

from sweeps.display.console import Screen
from sweeps.display.durations import in_words
from sweeps.planning.budget import (
    EPOCH_SHARES,
    EPOCHS,
    MIN_NETWORKS,
    Deadline,
    PlanOf,
    begun_with,
    fit_to_budget,
    scaled,
    start_seconds,
)
from sweeps.planning.cost import START_S, Hits, Plan, estimate
from sweeps.planning.probe import probe
from sweeps.planning.reuse import look_up
from sweeps.planning.wording import describe
from sweeps.search.config import SweepConfig
from sweeps.search.space import values_of
from trainables.records.stages import DatasetRecord
from trainables.store.results import store_below

# Seconds: the first in which `MIN_NETWORKS` networks are trained is taken. From a clone to a shipped file, the smallest
# takes less than ten minutes.
BUDGETS_S = (480.0, 1200.0, 1800.0, 2700.0, *(3600.0 * 2**power for power in range(8)))
# Of a budget: a poor teacher costs its students more than a few trials less do.
TEACHER_SHARE = 0.25
TEACHER_EPOCHS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.17, 0.1)  # shares of those that suit the images
LONG_S = 3600.0
# How a command and a program ask for nothing, and for more.
FLAGS = ("No --preset and no --gpus", "Longer: --budget 2h; on GPUs: --preset cifar10 --gpus 1.")
ARGUMENTS = ("No gpus, budget or trials asked for", 'Longer: budget="2h"; on GPUs: gpus=1.')


def plan_maker(config: SweepConfig, dataset: DatasetRecord, screen: Screen) -> PlanOf:
    """Time a few steps of every stage; returns what makes the plan of a sweep like this one."""
    with screen.busy("Timing a few steps of every stage"):
        measured = probe(config, dataset, apart=config.devices.gpus > 0)
    start_s = start_seconds(config.places.out)
    # a budget tries many plans, and a store may be remote
    find = functools.cache(store_below(config.places.out, config.places.storage).find)

    def plan_of(sweep: SweepConfig) -> tuple[Plan, Hits]:
        hits = look_up(sweep, dataset, find)
        return estimate(measured, sweep, hits, start_s=start_s or START_S), hits

    return plan_of


def fit_teacher(config: SweepConfig, plan_of: PlanOf, budget_s: float) -> SweepConfig:
    """The sweep with the largest share of its teacher's epochs that a quarter of a budget pays, or the smallest.

    A teacher that is in the store costs nothing: sweeps of one data set share it. A sweep that has begun keeps its own.
    """
    if begun := begun_with(config, (*EPOCHS, "teacher_epochs")):
        return config.replace(base=config.search.base.replace(teacher_epochs=begun.search.base.teacher.teacher_epochs))
    asked = config.search.base.teacher.teacher_epochs
    for share in TEACHER_EPOCHS:
        shorter = config.replace(base=config.search.base.replace(teacher_epochs=max(1, round(share * asked))))
        if asked == 0 or plan_of(shorter)[0].teacher_s.expected <= TEACHER_SHARE * budget_s:
            break
    return config if asked == 0 else shorter


def fit_to_minutes(
    config: SweepConfig, plan_of: PlanOf, *, started: float, typed: Collection[str], keeps_students: bool = False
) -> tuple[SweepConfig, Deadline | None]:
    """Fit a sweep for which nobody named a budget; returns it and its deadline.

    Without `trials` it gets the first of `BUDGETS_S` in which a few networks are trained; with them, the epochs with
    which they end in the first one, as far as there are any.

    Args:
        config: with the epochs that suit the images.
        started: on the clock of `time.monotonic`.
        typed: the settings that the user has given, which are left as they are.
        keeps_students: whether no student may be left out.
    """
    if "teacher_epochs" not in typed:
        config = fit_teacher(config, plan_of, BUDGETS_S[0])
    shares: Sequence[float] = (1.0,) if any(name in typed for name in EPOCHS) else EPOCH_SHARES
    if "trials" in typed:
        return _with_trials(config, plan_of, [share for share in shares if share <= 1]), None
    for budget_s in BUDGETS_S:
        try:
            fitted, deadline = fit_to_budget(
                config, plan_of, at=started + budget_s, budget_s=budget_s, shares=shares, keeps_students=keeps_students
            )
        except ValueError:  # not even one trial ends in time
            continue
        plan, _ = plan_of(fitted)
        wanted = plan.untrained + math.ceil(MIN_NETWORKS / plan.networks_per_trial - 1e-9)
        if plan.trials >= wanted or begun_with(config):
            return fitted, deadline
    return config, None  # days are not enough: what was asked for is run as it is


def _with_trials(config: SweepConfig, plan_of: PlanOf, shares: Sequence[float]) -> SweepConfig:
    """The sweep with the largest share of its epochs with which all of its trials end in the first budget."""
    if begun := begun_with(config):
        return begun
    for share in shares:
        shorter = config.replace(base=scaled(config.search.base, share))
        if plan_of(shorter)[0].total_s.expected <= BUDGETS_S[0]:
            break
    return shorter


def say_unasked(
    screen: Screen, config: SweepConfig, plan: Plan, deadline: Deadline | None, words: tuple[str, str] = FLAGS
) -> None:
    """Print what was chosen, how long it takes and what makes it bigger; `--quiet` hears of long sweeps alone."""
    if screen.mode == "quiet" and plan.total_s.expected < LONG_S:
        return
    base = config.search.base
    students = " or ".join(values_of(config.search.space, base, "student_model"))
    teacher = f"teacher {base.teacher.teacher_model} ({base.teacher.teacher_epochs} epochs), students {students}"
    if deadline is not None:
        taken = f"a budget of {in_words(deadline.budget_s)}, {describe(config, plan)}"
    elif plan.trials or plan.champion_runs:
        taken = f"{plan.trials} trials, about {plan.total_s} in all"
    else:
        taken = "all trials are there"
    unasked, bigger = words
    for line in (f"{unasked}: {teacher}, on {config.devices}; {taken}.", bigger):
        screen.print(line, markup=False, soft_wrap=True)
