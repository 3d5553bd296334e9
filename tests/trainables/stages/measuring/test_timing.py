import itertools
import re

import numpy as np
import pytest

from trainables.records.latency import HALF_WIDTH
from trainables.stages.measuring import timing
from trainables.stages.measuring.probes import Block, Probes, Reading
from trainables.stages.measuring.timing import MIN_BLOCKS, alternate, median_half_width, p90_bound, throughput_ips
from trainables.stages.models.devices.energy import Meter
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


def half_width(rows: list[list[float]]) -> float:
    return median_half_width([Block(times_ms=row) for row in rows])


def test_half_width_of_equal_times_is_zero() -> None:
    assert half_width([[2.0] * 5] * 8) == 0


def test_half_width_sees_drift_between_blocks() -> None:
    # within a block nothing varies: resampling single runs would claim a far tighter interval than blocks do
    drifting = [[1.0 + 0.1 * block] * 50 for block in range(10)]
    shuffled = np.random.default_rng(0).permutation(np.concatenate(drifting)).reshape(10, 50).tolist()
    assert half_width(drifting) > 2 * half_width(shuffled)


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


def test_too_few_runs_are_told(clock: Clock) -> None:
    ours = alternate(clock.runner(30), clock.runner(30), seconds=0.05).candidate
    # one A B B A has too few blocks, however alike they are
    assert ours.verdict == "too few runs: 2 blocks instead of 8; give it more --latency-seconds"


def test_alternation_ends_when_p50_is_known(clock: Clock) -> None:
    took = alternate(clock.runner(2), clock.runner(1), seconds=30)
    assert clock.perf_counter() < 3
    assert (took.candidate.latency_p50_ms, took.reference.latency_p50_ms) == (2, 1)
    assert (took.ratio, took.ratio_half_width) == (2, 0)
    assert took.candidate.verdict == "clean"
    assert took.candidate.latency_n == MIN_BLOCKS * 12  # 25 ms a block


def test_a_teacher_that_wanders_costs_no_time_and_makes_no_file_doubtful(clock: Clock) -> None:
    """It shows in its own verdict and in the interval of the ratio."""
    wandering = [0.5] * 50 + [0.65] * 51 + [0.47] * 49 + [0.6] * 53
    took = alternate(clock.runner(0.1), clock.runner(*wandering), seconds=30)
    assert clock.perf_counter() < 3
    assert took.candidate.verdict == "clean"
    assert took.candidate.latency_p50_ms == 0.1
    assert took.reference.verdict != "clean"
    assert took.ratio_half_width > HALF_WIDTH


def test_alternation_goes_on_to_the_limit_while_p50_is_not_known(clock: Clock) -> None:
    blocks = [1.0] * 60 + [1.08] * 60  # the machine changes its speed every 60 runs
    ours = alternate(clock.runner(*blocks), clock.runner(1), seconds=2).candidate
    assert 2 <= clock.perf_counter() < 4
    assert ours.latency_half_width > HALF_WIDTH
    assert re.fullmatch(r"p50 uncertain: known within \d+\.\d %; give it more --latency-seconds", ours.verdict)


def test_a_file_with_two_speeds_is_told(clock: Clock) -> None:
    ours = alternate(clock.runner(*[1.0] * 60, *[1.5] * 60), clock.runner(1), seconds=2).candidate
    assert re.fullmatch(r"slow spells: \d\d % of its blocks took 1.50 times as long as the fast ones", ours.verdict)


def test_slow_calls_get_the_time_for_enough_blocks_and_no_more(clock: Clock) -> None:
    ours = alternate(clock.runner(40), clock.runner(50), seconds=1).candidate
    assert ours.verdict == "clean"
    assert ours.latency_n == MIN_BLOCKS * 6
    assert ours.latency_p90_bound_ms == 40
    began = clock.perf_counter()
    slower = alternate(clock.runner(300), clock.runner(300), seconds=1).candidate
    assert slower.verdict.startswith("too few runs: 4 blocks")
    assert clock.perf_counter() - began < 12  # warm-up 3.6 s, 4 s, and the A B B A of 3.6 s that was under way


def test_what_hits_both_files_leaves_their_ratio_alone(clock: Clock) -> None:
    """The machine takes twice as long after a second, whichever file runs; the clock is reported, the ratio stays."""

    def drifting(milliseconds: float) -> Runner:
        def run() -> None:
            clock.ns += int(milliseconds * 1e6 * (1 + clock.perf_counter()))

        return Runner(run=run, provider="clock", device="cpu:1")

    took = alternate(drifting(2), drifting(1), seconds=3)
    assert took.candidate.latency_p50_ms > 2.2
    assert took.ratio == pytest.approx(2, rel=0.01)
    assert took.ratio_half_width < HALF_WIDTH


class Watching(Probes):
    """Probes that read a machine whose clock falls by a fifth for 80 of every 240 ms."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def slow(self) -> bool:
        return int(self._clock.perf_counter() / 0.08) % 3 == 1

    def read(self) -> Reading:
        return Reading(clock_ms=0.05 * (1.25 if self.slow() else 1), memory_ms=0.3, waited_s=0.0)


def test_blocks_beside_a_slow_clock_are_dropped_and_repeated_not_divided(clock: Clock) -> None:
    watching = Watching(clock)

    def run() -> None:
        clock.ns += 1_250_000 if watching.slow() else 1_000_000

    watched = Runner(run=run, provider="clock", device="cpu:1")
    took = alternate(watched, clock.runner(1), seconds=2, probes=watching)
    assert took.candidate.latency_p50_ms == took.candidate.latency_p90_ms == 1.0
    assert 0.2 < took.candidate_conditions["clock_share"] < 0.4
    assert took.candidate_conditions["memory_share"] == took.candidate_conditions["waited_share"] == 0
    unwatched = alternate(watched, clock.runner(1), seconds=2)
    assert unwatched.candidate_conditions == {} and unwatched.candidate.latency_p90_ms == 1.25


def test_slow_calls_are_not_run_twenty_times_to_warm_up(clock: Clock) -> None:
    alternate(clock.runner(1000), clock.runner(1000), seconds=1)
    assert clock.perf_counter() < 30


def test_throughput_is_images_over_time(clock: Clock) -> None:
    assert throughput_ips(clock.runner(5, batch=64), seconds=0.1) == pytest.approx(64 / 5e-3)


def test_energy_is_that_of_the_files_own_runs(clock: Clock) -> None:
    """Of a machine that uses 5 W, whatever runs: a file of 2 ms takes 10 mJ, and one of 6 ms for 3 images as well."""

    def measured(meter: Meter | None) -> list[float | None]:
        took = alternate(clock.runner(2.0), clock.runner(6.0, batch=3), seconds=1.0, meter=meter)
        return [took.candidate.energy_per_image_mj, took.reference.energy_per_image_mj]

    assert measured(Meter(read=lambda: [clock.ns], joules=5e-9, ranges=[10**8])) == pytest.approx([10.0, 10.0])
    assert measured(Meter(read=lambda: [7], joules=1.0, ranges=[0])) == [None, None]  # it stands still
    assert measured(None) == [None, None]
    assert "energy_per_image_mj" not in alternate(clock.runner(2.0), clock.runner(2.0), seconds=1.0).candidate.metrics()
