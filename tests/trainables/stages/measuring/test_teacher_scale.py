from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainables.stages.measuring.latencies import latency, linear_file, node
from trainables.config.candidate import MeasureConfig
from trainables.records.latency import LatencyRecord
from trainables.stages.measuring import teacher_scale as module
from trainables.stages.measuring.clean_room import Measured
from trainables.stages.measuring.teacher_scale import Scale, find_scale, measure_until_agreed

BUSY = "8 % of its CPUs were used by others"
MEASURE = MeasureConfig(latency_seconds=0.1)


def taking(*results: LatencyRecord) -> tuple[Callable[[], LatencyRecord], list[LatencyRecord]]:
    """Something that measures these one after the other, and what is left of them."""
    left = list(results)
    return lambda: left.pop(0), left


@pytest.mark.parametrize(
    ("times", "expected", "verdict", "unused"),
    [
        ((1.00, 1.02, 9.0, 9.0), 1.00, "clean", 2),  # two agree at once: the faster
        ((1.30, 1.01, 1.00, 9.0), 1.00, "clean", 1),  # the first in a slow spell
        ((1.30, 1.31, 1.00, 1.01), 1.30, "clean", 2),  # a spell that lasts; the next sweep looks again
        ((1.30, 1.00, 1.20, 1.31), 1.00, "noisy: p50 within 10.0 %", 0),  # the two fastest must agree
        ((1.30, 1.00, 1.20, 1.10), 1.00, "noisy: p50 within 5.0 %", 0),
    ],
)
def test_the_scale_is_measured_until_two_agree(
    times: tuple[float, ...], expected: float, verdict: str, unused: int
) -> None:
    take, left = taking(*map(latency, times))
    found = measure_until_agreed(take)
    assert (found.latency_p50_ms, found.verdict, len(left)) == (expected, verdict, unused)
    assert found.latency_attempts == found.latency_alone_s == 4 - unused


def test_a_machine_that_is_busy_from_the_start_is_not_asked_again() -> None:
    take, left = taking(latency(1.0, contaminated=BUSY), latency(1.0))
    assert measure_until_agreed(take).latency_contaminated == BUSY and len(left) == 1


def test_one_clean_measurement_among_others_is_not_called_clean() -> None:
    disturbed = latency(1.0, contaminated=BUSY)
    found = measure_until_agreed(
        taking(latency(1.2), disturbed, latency(1.1, noisy=True, half_width=0.05), disturbed)[0]
    )
    assert (found.latency_p50_ms, found.verdict) == (1.2, "noisy: too few runs, or not yet steady")


def test_of_noisy_ones_the_narrowest_is_taken() -> None:
    wide, narrow = (latency(1.0, noisy=True, half_width=width) for width in (0.2, 0.05))
    assert measure_until_agreed(taking(wide, narrow, wide, wide)[0]).verdict == "noisy: p50 within 5.0 %"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[LatencyRecord]:
    """What the machine measures next, in place of what it would."""
    coming: list[LatencyRecord] = []

    def measured(*_: object) -> Measured:
        now = coming.pop(0)
        return Measured(candidate=now, reference=now, throughput_ips=None)

    monkeypatch.setattr(module, "measure_beside", measured)
    return coming


def taken(folder: Path, *, check: bool = False) -> Scale:
    return find_scale(MEASURE, linear_file(folder), node(folder / "node"), check=check)


def test_the_scale_is_measured_in_two_processes_and_then_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = module.measure_beside, 0

    def counted(*args: object) -> Measured:
        nonlocal calls
        calls += 1
        return real(*args)

    monkeypatch.setattr(module, "measure_beside", counted)
    first = taken(tmp_path)
    assert calls >= (1 if first.own.latency_contaminated else 2)
    before = calls
    assert taken(tmp_path) == first
    assert calls == before


def test_a_sweep_that_begins_on_a_machine_of_another_speed_takes_a_new_scale(
    tmp_path: Path, machine: list[LatencyRecord]
) -> None:
    machine += [latency(1.0), latency(1.0)]
    old = taken(tmp_path)
    machine += [latency(1.04)]
    assert taken(tmp_path, check=True) == old  # within what drift may be
    machine += [latency(1.2, contaminated=BUSY)]
    assert taken(tmp_path, check=True) == old  # busy: who knows
    machine += [latency(1.1), latency(1.1), latency(1.11)]
    new = taken(tmp_path, check=True)
    assert new.own.latency_p50_ms == 1.1 and new.keys[:-1] == old.keys
    assert taken(tmp_path) == new
    assert machine == []


def test_a_scale_that_was_not_clean_is_taken_anew_on_a_quiet_machine(
    tmp_path: Path, machine: list[LatencyRecord]
) -> None:
    machine += [latency(1.0, contaminated=BUSY)]
    assert taken(tmp_path).own.verdict != "clean"
    machine += [latency(1.0)] * 3
    assert taken(tmp_path, check=True).own.verdict == "clean"
