import itertools
import re

import numpy as np
import pytest

from trainables.records.latency import HALF_WIDTH
from trainables.stages.measuring import timing
from trainables.stages.measuring.timing import MIN_BLOCKS, alternate, median_half_width, p90_bound, throughput_ips
from trainables.stages.runtimes.base import Runner


class Clock:
    """Time that passes only where a test lets it: nothing else on the machine can disturb."""

    def __init__(self) -> None:
        self.ns = 0

    def perf_counter(self) -> float:
        return self.ns / 1e9

    def perf_counter_ns(self) -> int:
        return self.ns

    def runner(self, *milliseconds: float, batch: int = 1) -> Runner:
        """Runs that take these times in turn."""
        times = itertools.cycle(milliseconds)

        def run() -> None:
            self.ns += int(next(times) * 1e6)

        return Runner(run=run, provider="clock", device="cpu:1", batch=batch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(timing, "time", fake)
    return fake


def test_half_width_of_equal_times_is_zero() -> None:
    assert median_half_width([[2.0] * 5] * 8) == 0


def test_half_width_sees_drift_between_blocks() -> None:
    # within a block nothing varies: resampling single runs would claim a far tighter interval than blocks do
    drifting = [[1.0 + 0.1 * block] * 50 for block in range(10)]
    shuffled = np.random.default_rng(0).permutation(np.concatenate(drifting)).reshape(10, 50).tolist()
    assert median_half_width(drifting) > 2 * median_half_width(shuffled)


def test_the_bound_is_the_order_statistic_of_the_binomial() -> None:
    """P(Binomial(100, 0.1) <= 3) = 0.78 %, <= 4 = 2.4 %: three times may be left out, not four."""
    times = np.random.default_rng(0).permutation(np.arange(1.0, 101.0)).tolist()
    assert p90_bound(times) == 97
    assert p90_bound([1.0] * 43) is None  # 0.9 ** 43 = 1.08 %
    assert p90_bound([1.0] * 44) == 1.0


@pytest.mark.parametrize("count", [44, 200])
def test_the_bound_is_above_the_90th_percentile_in_99_of_100_cases(count: int) -> None:
    samples = np.random.default_rng(1).exponential(size=(2000, count))
    bounds = np.array([p90_bound(row) for row in samples.tolist()])
    covered = (bounds >= -np.log(0.1)).mean()
    assert 0.985 <= covered <= 1  # at least 0.99, within three standard errors of 2,000 trials


def test_noisy_is_said_of_what_the_time_did_not_suffice_for(clock: Clock) -> None:
    ours, _ = alternate(clock.runner(30), clock.runner(30), seconds=0.05)
    assert ours.latency_noisy  # one A B B A has too few blocks, however alike they are
    assert ours.verdict == "noisy: too few runs, or not yet steady"


def test_alternation_ends_when_p50_is_known(clock: Clock) -> None:
    ours, theirs = alternate(clock.runner(2), clock.runner(1), seconds=30)
    assert clock.perf_counter() < 3
    assert (ours.latency_p50_ms, theirs.latency_p50_ms) == (2, 1)
    assert ours.verdict == "clean"
    assert ours.latency_n == MIN_BLOCKS * 12  # 25 ms a block


def test_alternation_goes_on_to_the_limit_while_p50_is_not_known(clock: Clock) -> None:
    blocks = [1.0] * 60 + [1.5] * 60  # the machine changes its speed every 60 runs
    ours, _ = alternate(clock.runner(*blocks), clock.runner(1), seconds=2)
    assert 2 <= clock.perf_counter() < 4
    assert ours.latency_half_width > HALF_WIDTH
    assert ours.latency_noisy and re.fullmatch(r"noisy: p50 within \d+\.\d %", ours.verdict)


def test_slow_calls_get_the_time_for_enough_blocks_and_no_more(clock: Clock) -> None:
    ours, _ = alternate(clock.runner(40), clock.runner(50), seconds=1)
    assert ours.verdict == "clean"
    assert ours.latency_n == MIN_BLOCKS * 6
    assert ours.latency_p90_bound_ms == 40
    began = clock.perf_counter()
    slower, _ = alternate(clock.runner(300), clock.runner(300), seconds=1)
    assert slower.latency_noisy
    assert clock.perf_counter() - began < 12  # warm-up 3.6 s, 4 s, and the A B B A of 3.6 s that was under way


def test_drift_hits_both_files_alike(clock: Clock) -> None:
    """The machine gets slower by 20 % a second, whichever file runs: the ratio stays."""

    def drifting(milliseconds: float) -> Runner:
        def run() -> None:
            clock.ns += int(milliseconds * 1e6 * (1 + clock.perf_counter() / 5))

        return Runner(run=run, provider="clock", device="cpu:1")

    ours, theirs = alternate(drifting(2), drifting(1), seconds=3)
    assert ours.latency_p50_ms > 2.2
    assert ours.latency_p50_ms / theirs.latency_p50_ms == pytest.approx(2, rel=0.01)


def test_slow_calls_are_not_run_twenty_times_to_warm_up(clock: Clock) -> None:
    alternate(clock.runner(1000), clock.runner(1000), seconds=1)
    assert clock.perf_counter() < 30


def test_throughput_is_images_over_time(clock: Clock) -> None:
    assert throughput_ips(clock.runner(5, batch=64), seconds=0.1) == pytest.approx(64 / 5e-3)


def test_scaling_moves_every_percentile_but_what_the_clock_said(clock: Clock) -> None:
    ours, _ = alternate(clock.runner(1), clock.runner(1), seconds=1)
    doubled = ours.scaled(2.0)
    assert doubled.latency_raw_p50_ms == ours.latency_raw_p50_ms
    for name in ("latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "latency_p90_bound_ms"):
        assert getattr(doubled, name) == 2 * getattr(ours, name)
