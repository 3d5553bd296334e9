"""Asynchronous successive halving in which only accuracy is a curve: a candidate's costs are known from the start.

After MO-ASHA (Schmucker et al., arXiv:2106.12639) and ASHA (Li et al., arXiv:1810.05934, the variant that stops
instead of pausing). The difference: a trial is compared only with trials that are no worse in every objective that is
fixed before training, and it is stopped only if one of them leads by more than the noise of the validation split. So a
member of the final front can be lost only if accuracies cross between the rung and the end.
"""

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import moocore
import numpy as np

from analysis.findings.pareto import Floats, epsilon_net

# The lead that counts, in standard errors of the difference of two validation accuracies.
STANDARD_ERRORS = 2.0
# The share of its budget that a trial has done counts among the fixed objectives: who has got further stops nobody who
# has not. At a share of the budget, less than this is rounding to whole epochs.
PROGRESS, ROUNDING = "progress", 0.1
NO_PRICES: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A trial's values at a rung, and the decision about it."""

    accuracy: float
    """On the validation split, 0 to 1."""
    num_val: int
    """Number of validation images."""
    fixed: Mapping[str, float]
    """Objectives that are known before training, and the progress; lower is better."""
    beaten_by: str | None = None
    """The trial with the largest lead, if this one was stopped; None if it continued."""


class Rungs:
    """Decide, at fractions of a trial's own budget of epochs, whether it continues.

    A rung compares a trial with those that have reported there before, and waits for no others. Of n trials the best
    max(1, n // eta) are kept: by non-dominated sorting over accuracy and fixed objectives, within a front in
    epsilon-net order. Any other trial is stopped only if a trial with no larger fixed objective leads it by more than
    `STANDARD_ERRORS`.

    Fixed objectives with a price are not compared but subtracted: the score is 100 * accuracy - sum(price * fixed),
    in points. If all have a price, this is ASHA on the score, among trials that have got equally far.
    """

    def __init__(self, *, prices: Mapping[str, float] = NO_PRICES, eta: int = 3, grace: float = 0.25) -> None:
        """Begin with these rules and no entries.

        Args:
            prices: accuracy points per unit of a fixed objective.
            eta: a rung keeps one trial in eta, and the next one is eta times as far.
            grace: fraction of the budget before the first rung.

        Raises:
            ValueError: if `eta` or `grace` is out of range.
        """
        if eta < 2:
            raise ValueError(f"`eta >= 2` must hold, but got {eta=}.")
        if not 0 < grace < 1:
            raise ValueError(f"`0 < grace < 1` must hold, but got {grace=}.")
        self._prices, self._eta, self._grace = dict(prices), eta, grace
        self._rungs: dict[str, _Rung] = {}
        self._stopped: set[str] = set()
        self._unsaved: list[tuple[str, str]] = []

    def steps(self, budget: int) -> list[int]:
        """The epochs, counted from 1, after which a trial with this budget is judged; never its last.

        Example:
            >>> Rungs(eta=3).steps(24), Rungs(eta=2).steps(24), Rungs().steps(1)
            ([6, 18], [6, 12], [])
        """
        return sorted(self._shares(budget))

    def _shares(self, budget: int) -> dict[int, float]:
        """Epoch of a rung -> share of the budget, of which it is the next whole epoch."""
        found: dict[int, float] = {}
        share = self._grace
        while (step := math.ceil(share * budget - 1e-9)) < budget:
            found.setdefault(step, share)
            share *= self._eta
        return found

    def is_rung(self, step: int, budget: int, *, milestone: bool = False) -> bool:
        """Whether a trial is judged after this epoch; a `milestone` is judged at any epoch before the end."""
        return step < budget and (milestone or step in self._shares(budget))

    def report(
        self,
        trial: str,
        *,
        step: int,
        budget: int,
        accuracy: float,
        num_val: int,
        fixed: Mapping[str, float],
        peers: str = "",
        milestone: bool = False,
    ) -> bool:
        """Record a trial's epoch if it is a rung; returns whether the trial should stop.

        The first record counts: a trial that reports the epoch again after a crash gets the same answer.

        Args:
            step: epochs done, 1 for the first.
            budget: epochs planned.
            peers: name of a group; a trial is compared with those of its group, at the same rung and no further in
                their budgets.
            milestone: see `is_rung`.

        Raises:
            ValueError: if `accuracy` or `num_val` is out of range.
        """
        if not (0 <= accuracy <= 1 and num_val >= 1):
            raise ValueError(f"`0 <= accuracy <= 1` and `num_val >= 1` must hold, but got {accuracy=} and {num_val=}.")
        if not self.is_rung(step, budget, milestone=milestone):
            return False
        share = self._shares(budget).get(step, 0.0)
        name = f"{'milestone' if milestone else f'{100 * share:g}%'} {peers}".strip()
        if name not in self._rungs or trial not in self._rungs[name].entries:
            progress = step / budget
            if not milestone and progress - share < ROUNDING:
                progress = share
            costs = {**fixed, PROGRESS: progress}
            self._record(name, trial, Entry(accuracy=accuracy, num_val=num_val, fixed=costs))
        return self._rungs[name].entries[trial].beaten_by is not None

    def has_stopped(self, trial: str) -> bool:
        """Whether a trial was told to stop, at any rung."""
        return trial in self._stopped

    @property
    def num_stopped(self) -> int:
        """Trials that were told to stop."""
        return len(self._stopped)

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows that `unsaved` returned earlier, even under other rules: old decisions stay, new ones use our rules.

        Raises:
            KeyError: or TypeError, if they are not such rows.
        """
        for row in rows:
            entry = {name: value for name, value in row.items() if name not in ("rung", "trial")}
            self._record(row["rung"], row["trial"], Entry(**entry), judged=True)

    def unsaved(self) -> list[dict[str, Any]]:
        """The entries since the last `saved`, in order, as plain data; the rules are not part of it."""
        return [
            {"rung": name, "trial": trial, **asdict(self._rungs[name].entries[trial])} for name, trial in self._unsaved
        ]

    def saved(self) -> None:
        """Note that all of `unsaved` has been written where `restore` will find it."""
        self._unsaved.clear()

    def _record(self, name: str, trial: str, entry: Entry, *, judged: bool = False) -> None:
        rung = self._rungs.setdefault(name, _Rung(self._prices))
        rung.add(trial, entry)
        if not judged:
            entry = rung.judge(trial, self._eta)
            self._unsaved.append((name, trial))
        if entry.beaten_by is not None:
            self._stopped.add(trial)


class _Rung:
    """The entries of a rung, and their numbers in columns.

    Sorted by the trials' names, so that ties do not depend on the order of arrival.
    """

    def __init__(self, prices: Mapping[str, float]) -> None:
        self.entries: dict[str, Entry] = {}
        self._prices = prices
        self._names: list[str] = []
        self._numbers = np.empty((0, 0))  # a row per trial: score, its standard error, fixed objectives without a price

    def add(self, trial: str, entry: Entry) -> None:
        """Add an entry, in place of an earlier one of the same trial."""
        at = bisect.bisect_left(self._names, trial)
        if trial in self.entries:
            del self._names[at]
            self._numbers = np.delete(self._numbers, at, axis=0)
        self.entries[trial] = entry
        self._names.insert(at, trial)
        score = 100 * entry.accuracy - sum(price * entry.fixed[name] for name, price in self._prices.items())
        costs = [entry.fixed[name] for name in sorted(entry.fixed.keys() - self._prices.keys())]
        row = np.array([[score, 100 * standard_error(entry.accuracy, entry.num_val), *costs]])
        self._numbers = np.insert(self._numbers, at, row, axis=0) if len(self._numbers) else row

    def judge(self, trial: str, eta: int) -> Entry:
        """Decide about a trial's entry, and return it with the decision."""
        self.entries[trial] = replace(self.entries[trial], beaten_by=self._beaten_by(trial, eta))
        return self.entries[trial]

    def _beaten_by(self, trial: str, eta: int) -> str | None:
        """The trial with the largest lead over this one, if this one has to stop; None if it continues."""
        at = bisect.bisect_left(self._names, trial)
        values, errors, costs = self._numbers[:, 0], self._numbers[:, 1], self._numbers[:, 2:]
        lead = values - values[at] - STANDARD_ERRORS * np.hypot(errors, errors[at])
        # A trial that is worse in any fixed objective may end on the front beside this one: it stops nothing.
        lead[(costs > costs[at]).any(axis=1)] = -np.inf
        best = int(np.argmax(lead))
        if lead[best] <= 0 or at in promotion_order(values, costs, max(1, len(values) // eta)):
            return None
        return self._names[best]


def standard_error(accuracy: float, num_val: int) -> float:
    """Binomial standard error of an accuracy, sqrt(p * (1 - p) / n).

    The errors of two models on the same images are correlated, so their difference has less noise than the sum of
    independent errors: a margin built from this is conservative. Noise between training seeds is not included.
    """
    return math.sqrt(accuracy * (1 - accuracy) / num_val)


def promotion_order(values: Floats, costs: Floats, count: int) -> list[int]:
    """The first `count` indices in the order of keeping: front after front, each in epsilon-net order.

    Args:
        values: shape (n,), higher is better.
        costs: shape (n, m), lower is better; m = 0 sorts by value alone.
        count: at most n.

    Example:
        >>> promotion_order(np.array([90.0, 80.0, 70.0, 60.0]), np.array([[4.0], [3.9], [1.0], [2.0]]), 3)
        [0, 2, 1]
    """
    points = np.column_stack([values, costs])
    ranks = moocore.pareto_rank(points, maximise=[True, *[False] * costs.shape[1]])
    order: list[int] = []
    for rank in range(int(ranks.max()) + 1):
        front = np.flatnonzero(ranks == rank)
        front = front[np.argsort(-values[front], kind="stable")]
        order += front[epsilon_net(points[front], count - len(order))].tolist()
        if len(order) >= count:
            break
    return order
