"""Time two files in turn and summarise their times (no torch)."""

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from trainables.records.latency import HALF_WIDTH, LatencyRecord
from trainables.stages.runtimes.base import Runner

CONFIDENCE = 0.99  # of the upper bound on the 90th percentile, as in MLPerf
MIN_BLOCKS = 8  # fewer blocks give no useful interval
EXTENSION = 4  # a file too slow for `MIN_BLOCKS` within the time limit may take this many times the limit

# Target length of a warm-up window, 3 to 20 runs: long compared with the switch to a file that was not running.
_WINDOW_MS = 250.0
# Target length of a timed block: long compared with the switch between files, short compared with machine drift.
_BLOCK_MS = 25.0
# Runs per block: with six, eight blocks are enough for a bound on p90; only two if a run takes `_SLOW_MS` or more.
_FEWEST, _MOST, _SLOW_MS = 6, 1000, 100.0


def alternate(candidate: Runner, reference: Runner, *, seconds: float) -> tuple[LatencyRecord, LatencyRecord]:
    """Measure the latency of both files in turn (A B B A), so that a slow minute of the machine affects both.

    Time blocks of about 25 ms, each after one untimed run that refills the caches, until the 95 % block-bootstrap
    half-width of both p50 is within 2 % or `seconds` are over (four times that for files too slow for `MIN_BLOCKS`; at
    least one A B B A). Warm-up comes before: at most half of `seconds`, but at least three runs of each file.
    """
    sides = [_Side(candidate), _Side(reference)]
    ours, theirs = sides
    with _no_gc():
        for side in sides:
            side.warm_up(seconds / 4)
        began = time.perf_counter()
        next_check = MIN_BLOCKS
        while True:
            for side in (ours, theirs, theirs, ours):
                side.time_block()
            if time.perf_counter() - began >= seconds * (1 if len(ours.blocks) >= MIN_BLOCKS else EXTENSION):
                break
            if len(ours.blocks) >= next_check:
                if all(median_half_width(side.blocks) <= HALF_WIDTH for side in sides):
                    break
                # a bootstrap takes longer than a block: check ever more rarely
                next_check = int(1.25 * next_check) + 1
    return ours.record(), theirs.record()


def throughput_ips(runner: Runner, *, seconds: float) -> float:
    """Measure images per second in successive calls: batch / median time of a call, over at least three calls."""
    with _no_gc():
        runner.run()
        deadline = time.perf_counter() + seconds
        times = _times(runner, 3)
        while time.perf_counter() < deadline:
            times += _times(runner, 1)
    return runner.batch / (float(np.median(times)) / 1e3)


def median_half_width(blocks: Sequence[Sequence[float]], *, resamples: int = 200) -> float:
    """Half the 95 % interval of the median, relative to the median.

    Whole blocks are resampled, because neighbouring runs are alike.
    """
    times = np.asarray(blocks)
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(times), size=(resamples, len(times)))
    medians = np.median(times[picks].reshape(resamples, -1), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float((high - low) / 2 / np.median(times))


def p90_bound(times: Sequence[float]) -> float | None:
    """A time above the 90th percentile with 99 % confidence for any distribution; None if there are too few times.

    Of q sorted times, drop the t slowest, with the largest t for which Binomial(q, 0.1) <= t has a probability of at
    most 1 %: only in that case could the slowest time kept lie below the 90th percentile. This is MLPerf's
    early-stopping estimate. Like it, this assumes independent runs, which is wrong under lasting disturbances.

    Example:
        >>> p90_bound(range(1, 101))
        97.0
    """
    q = len(times)
    total, t = 0.0, -1
    while t < q:
        k = t + 1
        log_choose = math.lgamma(q + 1) - math.lgamma(k + 1) - math.lgamma(q - k + 1)
        total += math.exp(log_choose + k * math.log(0.1) + (q - k) * math.log(0.9))
        if total > 1 - CONFIDENCE:
            break
        t = k
    return None if t < 0 else float(np.partition(np.asarray(times, dtype=float), q - t - 1)[q - t - 1])


class _Side:
    """One side of the comparison."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._runs = 5
        self._settled = False
        self.blocks: list[list[float]] = []

    def warm_up(self, seconds: float) -> None:
        """Run until the medians of two successive windows differ by less than 5 %, or `seconds` are over."""
        deadline = time.perf_counter() + seconds
        now = min(_times(self._runner, 3))
        window = int(np.clip(_WINDOW_MS / now, 3, 20))
        last = np.inf
        while not self._settled and (last == np.inf or time.perf_counter() < deadline):
            last, now = now, float(np.median(_times(self._runner, window)))
            self._settled = abs(now - last) < 0.05 * now
        self._runs = int(np.clip(_BLOCK_MS / now, _FEWEST if now < _SLOW_MS else 2, _MOST))

    def time_block(self) -> None:
        _times(self._runner, 1)  # untimed: the other file has just emptied the caches
        self.blocks.append(_times(self._runner, self._runs))

    def record(self) -> LatencyRecord:
        times = np.concatenate([np.asarray(block) for block in self.blocks])
        p50, p90, p99 = (float(p) for p in np.percentile(times, [50, 90, 99]))
        half_width = median_half_width(self.blocks)
        return LatencyRecord(
            latency_p50_ms=p50,
            latency_p90_ms=p90,
            latency_p99_ms=p99,
            latency_raw_p50_ms=p50,
            latency_p90_bound_ms=p90_bound(times.tolist()),
            latency_n=len(times),
            latency_half_width=half_width,
            latency_noisy=half_width > HALF_WIDTH or len(self.blocks) < MIN_BLOCKS or not self._settled,
            latency_device=self._runner.device,
            latency_provider=self._runner.provider,
        )


def _times(runner: Runner, runs: int) -> list[float]:
    """Run and time each run, in milliseconds."""
    clock, run = time.perf_counter_ns, runner.run
    times = []
    for _ in range(runs):
        start = clock()
        run()
        times.append((clock() - start) / 1e6)
    return times


@contextmanager
def _no_gc() -> Iterator[None]:
    """Disable Python's garbage collector, whose pauses would land in the tail of the times."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
