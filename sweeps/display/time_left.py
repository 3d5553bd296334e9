"""How much longer a sweep takes: its rest played through many times with what its trials have cost so far."""

import heapq
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from sweeps.display.durations import Range

DRAWS = 200
RECENT_TRIALS = 20
RECENT_EPOCHS = 40
PLAYED = 100  # trials; a longer rest is played this far and scaled
GRACE = 0.25  # where the first rung is (sweeps.search.sampling.rungs)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a trial was."""

    epochs: int
    """Trained by itself: not those of a student from the store, nor those after it was stopped."""
    rest_s: float
    """Its other seconds: start, measuring, export, waiting."""


@dataclass
class _Run:
    started: float
    epochs: int = 0
    training_s: float = 0.0
    reported: float = 0.0
    """When its last report came."""


class Pace:
    """Learns what epochs and trials cost while they run, and says how long the rest will take.

    A trial costs `epochs * seconds of an epoch + rest`. The rest of the sweep is played `DRAWS` times: every trial that
    is missing is a random one of the `RECENT_TRIALS` that ended last, or of those imagined below; an epoch costs what
    one of the recent epochs did (one draw for all trials: a machine is slow for all of them); the next trial begins
    when one of the places is free; a running trial is one that trained at least as far as it, less what it has used.
    Expected is the median of the plays, low and high are their 10 % and 90 % quantiles.

    Two things would make the first estimates too high, and are kept out. The first trial to come to an epoch computes
    the teacher's soft labels of its view, or waits for them: such epochs count only until there are others, and less
    `labels_s`, which is added once for every view that nobody has come to yet. And before anything has ended, the only
    trial known is one that trains all its epochs: beside this imagined one stands, where trials are stopped early, one
    that ends at the first rung. Both stay, as two among those that have ended.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        stops: bool,
        labels_s: Callable[[], float] = lambda: 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nothing known.

        Args:
            concurrency: trials at once.
            stops: whether trials are stopped early.
            labels_s: seconds that the teacher's soft labels of a view have taken this sweep; 0 if they were there.
            now: the clock, in seconds.
        """
        self._concurrency, self._stops, self._labels_s, self._now = concurrency, stops, labels_s, now
        self._running: dict[str, _Run] = {}
        self._ended: list[Cost] = []
        self._steps = 0
        self._views: dict[int, float] = {}
        self._first_s: list[float] = []
        self._epoch_s: list[float] = []

    def began(self, trial: str) -> None:
        """A trial runs."""
        now = self._now()
        self._running[trial] = _Run(started=now, reported=now)

    def reported(self, trial: str) -> None:
        """A trial has done something else than an epoch: the next epoch begins now."""
        if trial in self._running:
            self._running[trial].reported = self._now()

    def epoch(self, trial: str, *, step: int, steps: int) -> None:
        """A trial has trained an epoch since its last report.

        Args:
            step: 1 for the student's first; recovery goes on counting.
            steps: of a whole trial.
        """
        run = self._running.get(trial)
        if run is None:
            return
        now = self._now()
        seconds = now - run.reported
        labels_were_there = self._views.get(step, now) <= run.reported
        (self._epoch_s if labels_were_there else self._first_s).append(seconds)
        self._views.setdefault(step, now)
        self._steps = steps
        run.epochs += 1
        run.training_s += seconds
        run.reported = now

    def ended(self, trial: str) -> None:
        """A trial is over, whatever became of it."""
        run = self._running.pop(trial, None)
        if run is not None:
            self._ended.append(Cost(epochs=run.epochs, rest_s=self._now() - run.started - run.training_s))

    def left(self, trials: int) -> Range | None:
        """Seconds until all are done; None as long as nothing is known.

        Args:
            trials: that have not begun yet.
        """
        if not trials and not self._running:
            return Range(0, 0, 0)
        if not self._epoch_s and not self._first_s and not self._ended:
            return None
        missing_views = max(0, self._steps - len(self._views))
        labels_s = 0.0 if self._epoch_s and not missing_views else self._labels_s()
        first = [max(0.0, seconds - labels_s) for seconds in self._first_s]
        costs = (self._epoch_s or first)[-RECENT_EPOCHS:]
        kinds = self._kinds()
        draw = random.Random(0)  # the same luck every time: an estimate that does not flicker
        played = min(trials, PLAYED)
        plays = [self._play(kinds, costs or [0.0], played, draw) for _ in range(DRAWS)]
        tenths = quantiles(plays, n=10, method="inclusive")
        rest = Range(tenths[0], median(plays), tenths[-1]) * (trials / played if played else 1.0)
        return rest + missing_views * labels_s

    def _kinds(self) -> list[Cost]:
        """What a missing trial may be."""
        recent = self._ended[-RECENT_TRIALS:]
        now = self._now()
        others = [cost.rest_s for cost in recent] or [
            now - run.started - run.training_s for run in list(self._running.values())
        ]
        imagined = Cost(epochs=self._steps, rest_s=median(others))
        early = Cost(epochs=max(1, round(GRACE * self._steps)), rest_s=imagined.rest_s)
        return [*recent, imagined, *([early] if self._stops else [])] if self._steps else recent

    def _play(self, kinds: Sequence[Cost], costs: Sequence[float], trials: int, draw: random.Random) -> float:
        epoch_s = draw.choice(costs)
        places = [0.0] * max(0, self._concurrency - len(self._running))
        for run in list(self._running.values()):
            possible = [kind for kind in kinds if kind.epochs >= run.epochs] or kinds
            kind = draw.choice(possible)
            idle_s = self._now() - run.started - run.training_s
            places.append(max(0.0, (kind.epochs - run.epochs) * epoch_s + kind.rest_s - idle_s))
        heapq.heapify(places)
        for _ in range(trials):
            kind = draw.choice(kinds)
            heapq.heapreplace(places, places[0] + kind.epochs * epoch_s + kind.rest_s)
        return max(places)
