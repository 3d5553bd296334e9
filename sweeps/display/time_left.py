"""Estimate how much longer a sweep takes: simulate its rest many times from what its trials have cost so far."""

import heapq
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from sweeps.display.durations import Range

DRAWS = 200  # simulations of the rest
RECENT_TRIALS = 20
RECENT_EPOCHS = 40
PLAYED = 100  # simulate at most this many trials and scale up
GRACE = 0.25  # fraction of a trial before the first rung (sweeps.search.sampling.rungs)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an ended trial has cost."""

    share: float
    """Of its epochs, those that it trained itself: not those of a student from the store, nor after it was stopped."""
    rest_s: float
    """All other seconds: start, measuring, export, waiting."""


@dataclass
class _Run:
    started: float
    share: float = 0.0
    training_s: float = 0.0
    reported: float = 0.0
    """Time of its last report."""


class Pace:
    """Learns the cost of epochs and trials while they run, and estimates the time left.

    A trial costs `share of its epochs * seconds of all of them + rest`: trials whose networks are smaller have more
    epochs, in about the same time. The rest of the sweep is simulated `DRAWS` times. Every missing trial is drawn from
    the `RECENT_TRIALS` that ended last and the imagined ones below. All epochs cost what one recent epoch did, times
    their number, with one draw for all trials, because a machine is slow for all of them. The next trial begins when a
    place is free. A running trial is drawn from those that trained at least as far, less what it has used already. The
    expected time is the median of the simulations, low and high are their 10 % and 90 % quantiles.

    Two effects would make the first estimates too high, and are corrected. The first trial to reach an epoch computes
    the teacher's soft labels of its view, or waits for them: such epochs count only until there are others, and less
    `labels_s`, which is added once for every view that a trial needs and none has reached yet. And before any trial has
    ended, the only one known trains all its epochs. This imagined trial is joined, where trials are stopped early, by a
    second that ends at the first rung. Both imagined trials stay in the pool.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        stops: bool,
        labels_s: Callable[[], float] = lambda: 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with no knowledge.

        Args:
            concurrency: trials at once.
            stops: whether trials are stopped early.
            labels_s: seconds that the teacher's soft labels of a view took in this sweep; 0 if they were in the store.
            now: the clock, in seconds.
        """
        self._concurrency, self._stops, self._labels_s, self._now = concurrency, stops, labels_s, now
        self._running: dict[str, _Run] = {}
        self._ended: list[Cost] = []
        self._steps = self._needed = 0
        self._views: dict[int, float] = {}
        self._firsts: list[tuple[float, int]] = []
        """Seconds of epochs that may have computed soft labels, and how many epochs their trials have."""
        self._whole_s: list[float] = []
        """Seconds of all epochs of a trial, by each of the other epochs."""

    def began(self, trial: str) -> None:
        """Note that a trial has started."""
        now = self._now()
        self._running[trial] = _Run(started=now, reported=now)

    def reported(self, trial: str) -> None:
        """Note a report that is not about an epoch: the next epoch begins now."""
        if trial in self._running:
            self._running[trial].reported = self._now()

    def epoch(self, trial: str, *, step: int, steps: int, taught: bool = True, views: int | None = None) -> None:
        """Note that a trial has trained an epoch since its last report.

        Args:
            step: 1 for the student's first epoch; recovery continues the count.
            steps: of a whole trial.
            taught: whether this epoch needed soft labels.
            views: how many epochs of the trial do; None if all do.
        """
        run = self._running.get(trial)
        if run is None:
            return
        now = self._now()
        seconds = now - run.reported
        # If another trial finished this epoch before ours began it, its soft labels cost us nothing.
        if taught and self._views.get(step, now) > run.reported:
            self._firsts.append((seconds, steps))
        else:
            self._whole_s.append(seconds * steps)
        if taught:
            self._views.setdefault(step, now)
        self._steps, self._needed = steps, max(self._needed, steps if views is None else views)
        run.share += 1 / steps
        run.training_s += seconds
        run.reported = now

    def ended(self, trial: str) -> None:
        """Note that a trial is over, whatever its result."""
        run = self._running.pop(trial, None)
        if run is not None:
            self._ended.append(Cost(share=run.share, rest_s=self._now() - run.started - run.training_s))

    def left(self, trials: int) -> Range | None:
        """Estimate the seconds until all trials are done; None as long as nothing is known.

        Args:
            trials: how many have not begun yet.
        """
        if not trials and not self._running:
            return Range(0, 0, 0)
        if not self._whole_s and not self._firsts and not self._ended:
            return None
        missing_views = max(0, self._needed - len(self._views))
        labels_s = 0.0 if self._whole_s and not missing_views else self._labels_s()
        first = [max(0.0, seconds - labels_s) * steps for seconds, steps in self._firsts]
        costs = (self._whole_s or first)[-RECENT_EPOCHS:]
        kinds = self._kinds()
        draw = random.Random(0)  # the same seed every time, so that the estimate does not flicker
        played = min(trials, PLAYED)
        plays = [self._play(kinds, costs or [0.0], played, draw) for _ in range(DRAWS)]
        tenths = quantiles(plays, n=10, method="inclusive")
        rest = Range(tenths[0], median(plays), tenths[-1]) * (trials / played if played else 1.0)
        return rest + missing_views * labels_s

    def _kinds(self) -> list[Cost]:
        """The costs from which a missing trial is drawn."""
        recent = self._ended[-RECENT_TRIALS:]
        now = self._now()
        others = [cost.rest_s for cost in recent] or [
            now - run.started - run.training_s for run in list(self._running.values())
        ]
        if not self._steps:
            return recent
        imagined = Cost(share=1.0, rest_s=median(others))
        early = Cost(share=max(1, round(GRACE * self._steps)) / self._steps, rest_s=imagined.rest_s)
        return [*recent, imagined, *([early] if self._stops else [])]

    def _play(self, kinds: Sequence[Cost], costs: Sequence[float], trials: int, draw: random.Random) -> float:
        """Simulate the rest once; returns its seconds."""
        whole_s = draw.choice(costs)
        places = [0.0] * max(0, self._concurrency - len(self._running))
        for run in list(self._running.values()):
            possible = [kind for kind in kinds if kind.share > run.share - 1e-9] or kinds
            kind = draw.choice(possible)
            idle_s = self._now() - run.started - run.training_s
            places.append(max(0.0, (kind.share - run.share) * whole_s + kind.rest_s - idle_s))
        # `places` holds the time at which each place is free; the next trial takes the earliest.
        heapq.heapify(places)
        for _ in range(trials):
            kind = draw.choice(kinds)
            heapq.heapreplace(places, places[0] + kind.share * whole_s + kind.rest_s)
        return max(places)
