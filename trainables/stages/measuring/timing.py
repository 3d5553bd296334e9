"""Time two files in turn and summarise their times (no torch)."""

import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trainables.records.latency import HALF_WIDTH, LatencyRecord
from trainables.stages.measuring.probes import SPELL_SHARE, Block, Probes, Reading, Sorted, slow_spells, sort_blocks
from trainables.stages.models.devices.energy import Meter
from trainables.stages.runtimes.base import Runner

CONFIDENCE = 0.99  # of the upper bound on the 90th percentile, as in MLPerf
MIN_BLOCKS = 8  # fewer blocks give no useful interval
EXTENSION = 4  # a file too slow for `MIN_BLOCKS` within the time limit may take this many times the limit

# Target length of a warm-up window, 3 runs or more: long compared with the switch to a file that was not running.
_WINDOW_MS = 100.0
# Target length of a timed block at most: long compared with the switch between files, short compared with a machine's
# slow spells. A time limit that is too short for 100 such blocks of each file gets shorter ones: 5 ms of the quick
# preset's second. Blocks of 12.5 ms took 1.4 times as long for fast files (LOG.md, 2026-11-30, "blocks").
_BLOCK_MS, _BLOCKS = 25.0, 100
# Runs per block at most, and the time of a run from which on two are enough.
_MOST, _SLOW_MS = 1000, 100.0


class _RunLimits(NamedTuple):
    """How often a side runs."""

    block: int
    """In a timed block, at least."""
    window: int
    """In a warm-up window, at most."""


# With six runs a block, eight blocks are enough for a bound on p90. The reference is mostly the slower file, and the
# ratio needs its median only.
_CANDIDATE, _REFERENCE = _RunLimits(block=6, window=20), _RunLimits(block=3, window=5)


@dataclass(frozen=True, kw_only=True)
class Alternation:
    """Two files timed in turn."""

    candidate: LatencyRecord
    reference: LatencyRecord
    ratio: float
    """Candidate's time by the reference's: median over pairs of neighbouring blocks."""
    ratio_half_width: float
    """Half-width of its 95 % bootstrap interval, relative to it."""
    candidate_conditions: Mapping[str, float]
    """What the probes found about the candidate's blocks, by its name in `ConditionsRecord`; empty without probes."""
    reference_conditions: Mapping[str, float]


def alternate(
    candidate: Runner,
    reference: Runner,
    *,
    seconds: float,
    probes: Probes | None = None,
    threads: int = 1,
    meter: Meter | None = None,
) -> Alternation:
    """Measure the latency of both files in turn (A B B A), with the probes before and after every block.

    Time blocks, each after one untimed run that refills the caches, until the candidate has `MIN_BLOCKS` undisturbed
    ones that give its p50 within 2 % (95 % block-bootstrap half-width), or `seconds` are over (four times that for
    files too slow for so many; at least one A B B A). The reference may be as unsteady as it likes: that costs no time
    and shows in the interval of the ratio. Warm-up comes before: at most half of `seconds`, but at least three runs of
    each file.

    Args:
        probes: what watches the machine; None times without watching.
        threads: of this process that may run at once.
        meter: of the energy that a block takes.
    """
    ours, theirs = (
        _Side(runner, runs, probes, seconds, threads, meter)
        for runner, runs in ((candidate, _CANDIDATE), (reference, _REFERENCE))
    )
    with _no_gc():
        for side in (ours, theirs):
            side.warm_up(seconds / 4)
        began = time.perf_counter()
        next_check = MIN_BLOCKS
        while True:
            for side in (ours, theirs, theirs, ours):
                side.time_block()
            if time.perf_counter() - began >= seconds * (1 if len(ours.blocks) >= MIN_BLOCKS else EXTENSION):
                break
            if len(ours.blocks) >= next_check:
                kept = ours.sorted().kept
                if len(kept) >= MIN_BLOCKS and median_half_width(kept) <= HALF_WIDTH:
                    break
                # a bootstrap takes longer than a block: check ever more rarely
                next_check = int(1.25 * next_check) + 1
    ratio, half_width = paired_ratio(ours, theirs)
    return Alternation(
        candidate=ours.record(),
        reference=theirs.record(),
        ratio=ratio,
        ratio_half_width=half_width,
        candidate_conditions=ours.sorted().conditions(),
        reference_conditions=theirs.sorted().conditions(),
    )


def throughput_ips(runner: Runner, *, seconds: float) -> float:
    """Measure images per second in successive calls: batch / median time of a call, over at least three calls."""
    with _no_gc():
        runner.run()
        deadline = time.perf_counter() + seconds
        times = _times(runner, 3)
        while time.perf_counter() < deadline:
            times += _times(runner, 1)
    return runner.batch / (float(np.median(times)) / 1e3)


def median_half_width(blocks: Sequence[Block]) -> float:
    """Half the 95 % interval of the median, relative to the median.

    Whole blocks are resampled, because neighbouring runs are alike.
    """
    return _half_width([block.times_ms for block in blocks])


def _half_width(rows: Sequence[Sequence[float]], *, resamples: int = 200) -> float:
    values = np.asarray(rows)
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(values), size=(resamples, len(values)))
    medians = np.median(values[picks].reshape(resamples, -1), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float((high - low) / 2 / np.median(values))


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

    def __init__(
        self,
        runner: Runner,
        limits: _RunLimits,
        probes: Probes | None,
        seconds: float,
        threads: int,
        meter: Meter | None,
    ) -> None:
        self._runner, self._limits, self._probes, self._threads, self._meter = runner, limits, probes, threads, meter
        self._block_ms = min(_BLOCK_MS, 1e3 * seconds / 2 / _BLOCKS)
        self._runs = 5
        self.blocks: list[Block] = []

    def warm_up(self, seconds: float) -> None:
        """Run until the medians of two successive windows differ by less than 5 %, or `seconds` are over."""
        deadline = time.perf_counter() + seconds
        now = min(_times(self._runner, 3))
        window = int(np.clip(_WINDOW_MS / now, 3, self._limits.window))
        last = np.inf
        while last == np.inf or (abs(now - last) >= 0.05 * now and time.perf_counter() < deadline):
            last, now = now, float(np.median(_times(self._runner, window)))
        self._runs = int(np.clip(self._block_ms / now, self._limits.block if now < _SLOW_MS else 2, _MOST))

    def time_block(self) -> None:
        before = self._read()
        counts = self._meter.read() if self._meter else None
        _times(self._runner, 1)  # untimed: the other file and the probes have just emptied the caches
        times = _times(self._runner, self._runs)
        joules = self._meter.since(counts) if self._meter and counts is not None else None
        self.blocks.append(Block(times_ms=times, before=before, after=self._read(), joules=joules))

    def _read(self) -> Reading | None:
        return self._probes.read() if self._probes is not None else None

    def sorted(self) -> Sorted:
        return sort_blocks(self.blocks, threads=self._threads)

    def record(self) -> LatencyRecord:
        kept = self.sorted().kept
        times = np.concatenate([np.asarray(block.times_ms) for block in kept])
        p50, p90, p99 = (float(p) for p in np.percentile(times, [50, 90, 99]))
        return LatencyRecord(
            latency_p50_ms=p50,
            latency_p90_ms=p90,
            latency_p99_ms=p99,
            latency_p90_bound_ms=p90_bound(times.tolist()),
            latency_n=len(times),
            latency_half_width=median_half_width(kept),
            latency_doubt=doubt_of(kept),
            latency_device=self._runner.device,
            latency_provider=self._runner.provider,
            energy_per_image_mj=energy_per_image_mj(kept, batch=self._runner.batch),
        )


def energy_per_image_mj(blocks: Sequence[Block], *, batch: int) -> float | None:
    """Millijoules an image over all runs of these blocks; None if nobody metered, or the meter stood still.

    Example:
        >>> energy_per_image_mj([Block(times_ms=[1.0] * 9, joules=0.5)], batch=1)
        50.0
    """
    known = [block.joules for block in blocks if block.joules is not None]
    images = batch * sum(len(block.times_ms) + 1 for block in blocks)  # each block has an untimed run
    return 1e3 * sum(known) / images if len(known) == len(blocks) and sum(known) > 0 else None


def doubt_of(blocks: Sequence[Block]) -> str:
    """What makes a p50 of these blocks doubtful, as `NAME: facts`; empty if it is known within 2 %."""
    share, times = slow_spells(blocks)
    half_width = median_half_width(blocks)
    if share > SPELL_SHARE:
        return f"slow spells: {100 * share:.0f} % of its blocks took {times:.2f} times as long as the fast ones"
    if len(blocks) < MIN_BLOCKS:
        return f"too few runs: {len(blocks)} blocks instead of {MIN_BLOCKS}; give it more --latency-seconds"
    if half_width > HALF_WIDTH:
        return f"p50 uncertain: known within {100 * half_width:.1f} %; give it more --latency-seconds"
    return ""


def paired_ratio(ours: _Side, theirs: _Side) -> tuple[float, float]:
    """The median of our time by theirs over pairs of neighbouring blocks, and its relative 95 % half-width.

    What hits both blocks of a pair leaves the ratio alone. Pairs with a disturbed block are left out, if others remain.
    """
    pairs = list(zip(ours.blocks, theirs.blocks, strict=True))  # A B B A: the first two are neighbours, and the last
    good = [{id(block) for block in side.sorted().kept} for side in (ours, theirs)]
    undisturbed = [pair for pair in pairs if id(pair[0]) in good[0] and id(pair[1]) in good[1]]
    ratios = [[one.p50_ms / other.p50_ms] for one, other in undisturbed or pairs]
    return float(np.median(ratios)), _half_width(ratios)


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
