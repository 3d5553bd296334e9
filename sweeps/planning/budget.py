"""Fit a sweep into a time budget: how many trials fit, when it has to stop, how long it takes to begin."""

import bisect
import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sweeps.planning.cost import Hits, Plan
from sweeps.planning.wording import too_short
from sweeps.search.config import SweepConfig
from sweeps.search.space import values_of
from trainables.config.candidate import TEACHER_ITSELF, CandidateConfig
from trainables.files import write_text
from trainables.layout import IDENTITY, SPENT, START
from trainables.records.encoding import to_json

# Kept free at a budget's end: front, report and registered models took 5 to 10 s on two cores.
FINISH_S = 10.0
# Few long trainings beat many short ones (LOG.md, 2026-11-29, "where to cut"). A front needs `MIN_NETWORKS` all the
# same; `FULL_NETWORKS` suit all of the epochs that were asked for. Another round must be worth this much more.
MIN_NETWORKS, FULL_NETWORKS, ANOTHER_ROUND = 2, 5, 1.1
# From 4 over 1 to 0.08, in steps of a tenth: little of a round is not used.
EPOCH_SHARES = tuple(4 ** (1 - step / 15) for step in range(43))
# A network that is cut off at the deadline is lost, and all of a round are about equally long; the steps of a machine
# are not always those of the probe, which differed by a factor of 1.2 from one command to the next.
SLOWER = 1.25
PlanOf = Callable[[SweepConfig], tuple[Plan, Hits]]
EPOCHS = ("student_epochs", "recovery_epochs")  # settings that are shortened


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadline:
    """The time at which a sweep has to stop."""

    at: float
    """On the clock of `time.monotonic`."""
    trial_s: float
    """Expected seconds of a trial; one that would end too late is not started."""
    file_s: float
    """The same of a trial that only writes another file of a trained network."""
    champions_s: float = 0.0
    """Expected seconds of champions and controls, which the search leaves free for them."""
    budget_s: float = 0.0
    """The budget asked for; it ends `FINISH_S` after `at`."""

    def left(self) -> float:
        """Seconds until the deadline, 0 when it is over."""
        return max(0.0, self.at - time.monotonic())

    def spent_before(self, started: float) -> float:
        """Seconds of the budget that were spent when this command started, on the clock of `time.monotonic`."""
        return max(0.0, self.budget_s - (self.at + FINISH_S - started))

    def spent(self) -> float:
        """Seconds of the budget that are spent, including those of earlier commands that were cut off."""
        return self.budget_s - FINISH_S - self.left()

    def search_left(self) -> float:
        """Seconds left for the search, 0 when its time is over."""
        return max(0.0, self.left() - self.champions_s)

    def over(self, *, for_file: bool = False, trial_s: float | None = None) -> bool:
        """Whether it is too late for the search to start another trial, or one that only writes a file.

        Args:
            trial_s: seconds that trials have taken; None as long as nobody knows, then what was expected counts.
        """
        needs = self.file_s if for_file else self.trial_s if trial_s is None else trial_s
        return self.search_left() < needs


def fit_to_budget(
    config: SweepConfig,
    plan_of: PlanOf,
    *,
    at: float,
    budget_s: float,
    shares: Sequence[float] = EPOCH_SHARES,
    keeps_students: bool = False,
) -> tuple[SweepConfig, Deadline]:
    """Choose the epochs of a trial and how many networks are trained, then as many trials as fit until `at`.

    Student and recovery epochs are scaled together. Networks come in rounds of as many as run at once; with each more
    there is time for fewer epochs. Chosen is the number with the most of what is scarcer, networks or epochs
    (`_Fit.worth`). If not even the epochs asked for fit, only the teacher is cut, where it is one of the students: that
    needs fewer epochs than to train another network. A sweep that has begun keeps its epochs and students, and goes on
    whatever a slow moment says of the time that a trial needs: its networks may be half trained. If the rest that a
    cut-off command left of a budget is too short for a trial, the sweep has a whole budget again.

    Args:
        config: with the epochs asked for.
        plan_of: a sweep -> its plan, and what exists of it already.
        at: on the clock of `time.monotonic`.
        budget_s: the budget asked for, in seconds.
        shares: of the epochs, the largest first; the last one is taken if none trains enough networks.
        keeps_students: whether no student may be left out.

    Raises:
        ValueError: if not even one trial fits.
    """
    begun = begun_with(config)
    ways = [_Way(sweep=begun, shares=(1.0,), networks=MIN_NETWORKS)] if begun else _ways(config, shares, keeps_students)
    at -= FINISH_S
    fit = _first_fit(ways, plan_of, at)
    if fit.trials == 0 and (spent := spent_seconds(config.folder, budget_s)):
        at += spent
        fit = _first_fit(ways, plan_of, at)
    plan, hits = fit.plan, fit.hits
    goes_on = fit.trials == 0 and begun is not None
    trials = fit.wanted if goes_on else fit.trials
    deadline = Deadline(
        at=at,
        trial_s=0.0 if goes_on else plan.trial_s.expected,  # of a half-trained one nobody knows
        file_s=plan.file_s,
        champions_s=plan.champions_s.expected,
        budget_s=budget_s,
    )
    if trials == 0:
        # what the probe has used so far, and what is kept free at the end
        raise ValueError(too_short(plan, budget_s, budget_s - deadline.left()))
    if trials > fit.wanted:  # with their soft labels
        more, _ = plan_of(fit.sweep.replace(trials=hits.trials + trials))
        trials = min(trials, max(fit.wanted, trials_within(deadline.left(), more)))
    return fit.sweep.replace(trials=hits.trials + trials), deadline


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Way:
    """A sweep that a budget may be fitted with."""

    sweep: SweepConfig
    shares: Sequence[float]
    """Of its epochs, the largest first."""
    networks: int
    """About so many are trained at least, in whole rounds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fit:
    """A sweep with a share of its epochs."""

    sweep: SweepConfig
    share: float
    plan: Plan
    hits: Hits
    networks: int
    """To be trained."""
    wanted: int
    """Trials that need as many networks."""
    trials: int
    """Trials that fit."""

    @property
    def worth(self) -> float:
        """Networks, or the share of the epochs as the number of networks that suits it, whichever is less."""
        return min(float(self.networks), FULL_NETWORKS * self.share)


def _first_fit(ways: Sequence[_Way], plan_of: PlanOf, at: float) -> _Fit:
    """The best fit of the first way that fits until `at`; of the last one with its fewest epochs, if none does."""
    seconds = max(0.0, at - time.monotonic())
    for way in ways:
        if fit := _best_fit(way, plan_of, seconds):
            return fit
    return _try_share(ways[-1].sweep, ways[-1].shares[-1], 1, plan_of, seconds)


def _best_fit(way: _Way, plan_of: PlanOf, seconds: float) -> _Fit | None:
    """The number of rounds that is worth most with the largest share of the epochs that it leaves time for."""
    best: _Fit | None = None
    at_once = plan_of(way.sweep)[0].concurrency
    rounds = max(1, round(way.networks / at_once))
    while True:
        tried: dict[float, _Fit] = {}

        def fits(share: float, networks: int = rounds * at_once, tried: dict[float, _Fit] = tried) -> bool:
            tried[share] = fit = _try_share(way.sweep, share, networks, plan_of, seconds)
            return fit.trials >= fit.wanted

        # the smaller the share, the more fits
        found = bisect.bisect_left(way.shares, True, key=fits)
        if found == len(way.shares):
            return best
        fit = tried[way.shares[found]]
        if best is not None and fit.worth < ANOTHER_ROUND * best.worth:
            return best
        best, rounds = fit, rounds + 1


def _try_share(sweep: SweepConfig, share: float, networks: int, plan_of: PlanOf, seconds: float) -> _Fit:
    """Plan so many networks with a share of the epochs.

    Few trials need few soft labels, so their number must be known first.
    """
    shorter = sweep.replace(base=scaled(sweep.search.base, share))
    plan, hits = plan_of(shorter)
    wanted = plan.untrained + math.ceil(networks / plan.networks_per_trial - 1e-9)
    plan, hits = plan_of(shorter.replace(trials=hits.trials + wanted))
    trials = trials_within(seconds, plan)
    return _Fit(sweep=shorter, share=share, plan=plan, hits=hits, networks=networks, wanted=wanted, trials=trials)


def scaled(base: CandidateConfig, share: float) -> CandidateConfig:
    """The settings with a share of all epochs together, at least one of each kind that has any."""
    student, recovery = (base.flat()[name] for name in EPOCHS)
    before = max(1, round(share * student)) if student else 0
    after = max(1, round(share * (student + recovery)) - before) if recovery else 0
    return base.replace(student_epochs=before, recovery_epochs=after)


def _ways(config: SweepConfig, shares: Sequence[float], keeps_students: bool) -> list[_Way]:
    """The sweeps in the order in which they are tried."""
    students = values_of(config.search.space, config.search.base, "student_model")
    if keeps_students or TEACHER_ITSELF not in students or len(students) == 1:
        return [_Way(sweep=config, shares=shares, networks=MIN_NETWORKS)]
    whole = [share for share in shares if share >= 1]
    cuts = _Way(sweep=_only_cuts(config), shares=shares, networks=MIN_NETWORKS)
    return [_Way(sweep=config, shares=whole, networks=FULL_NETWORKS), cuts] if whole else [cuts]


def _only_cuts(config: SweepConfig) -> SweepConfig:
    """The sweep with the teacher itself as its only student."""
    space = {name: values for name, values in config.search.space.items() if name != "student_model"}
    return config.replace(space=space, base=config.search.base.replace(student_model=TEACHER_ITSELF))


def begun_with(config: SweepConfig, names: Sequence[str] = EPOCHS) -> SweepConfig | None:
    """The sweep with the epochs and students that it has begun with; None if it has not, or its file is unreadable
    (`run` reports that)."""
    try:
        base = json.loads((config.folder / IDENTITY).read_text(encoding="utf-8"))["settings"]["base"]
        epochs = {name: int(base[name]) for name in names}
        begun = config.replace(base=config.search.base.replace(**epochs))
        return _only_cuts(begun) if base.get("student_model") == TEACHER_ITSELF else begun
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def spent_seconds(folder: Path, budget_s: float) -> float:
    """Seconds that cut-off commands of this sweep spent of the budget; 0 if the last one used all of it."""
    try:
        spent = float(json.loads((folder / SPENT).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
    return spent if spent < budget_s - FINISH_S else 0.0


def trials_within(seconds: float, plan: Plan) -> int:
    """How many trials fit: first those that train nothing, then networks in whole rounds of as many as run at once.

    Teacher, labels, champions and start come before. A round takes the time of one network with its files, and of the
    others' measurements; in the last round, the time of a slow one. Three networks, two at once, take as long as four.
    """
    before = plan.teacher_s.expected + plan.labels_s.expected + plan.champions_s.expected + plan.start_s
    if seconds - before < plan.trial_s.expected:
        return 0
    file_s = (plan.file_s - plan.alone_s) / plan.concurrency + plan.alone_s
    left = seconds - before - plan.untrained * file_s
    if left < 0:
        return int((seconds - before) / file_s)
    files = 1 / plan.networks_per_trial
    network_s = plan.average_s * files
    # 1e-9: a quotient that rounding has put just below a whole number must not lose a round
    round_s = network_s + (plan.concurrency - 1) * plan.alone_s * files
    rounds = int(max(0.0, left - (SLOWER - 1) * network_s) / round_s + 1e-9)
    networks = rounds * plan.concurrency or int(left >= network_s)
    return plan.untrained + round(networks * files)


def start_seconds(out: Path) -> float | None:
    """Seconds that the last sweep under `out` took from launch to its first trial; None if none was measured."""
    try:
        return float(json.loads((out / START).read_text(encoding="utf-8"))["start_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_start(out: Path, seconds: float) -> None:
    """Save the time from launch to the first trial for the next plan."""
    try:
        write_text(out / START, to_json({"start_s": round(seconds, 2)}))
    except OSError:  # a full disk: the next plan assumes a start instead
        return
