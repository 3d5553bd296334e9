from pathlib import Path

import pytest

from tests.trainables.stages.measuring.latencies import latency, linear_file, measured, node
from trainables.config.candidate import MeasureConfig
from trainables.records.latency import LatencyRecord
from trainables.stages.measuring import beside_teacher as module
from trainables.stages.measuring.beside_teacher import Timed, find_scale
from trainables.stages.measuring.process import Measured

BUSY = "CPU shared: others used 8 % of its CPUs' time besides"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[LatencyRecord]:
    """What the machine measures next, in place of what it would."""
    coming: list[LatencyRecord] = []

    def timed(*_: object) -> Measured:
        return measured(coming.pop(0))

    monkeypatch.setattr(module, "time_beside", timed)
    return coming


def taken(folder: Path, *, renew: bool = False) -> Timed:
    config = MeasureConfig(latency_seconds=0.1)
    return find_scale(config, linear_file(folder), node(folder / "node"), renew=renew)


def test_the_scale_is_measured_once_and_then_found_at_no_cost(tmp_path: Path) -> None:
    first, then = taken(tmp_path), taken(tmp_path)
    assert first.latency.latency_p50_ms == then.latency.latency_p50_ms > 0
    assert first.latency.latency_alone_s > then.latency.latency_alone_s == 0


def test_all_files_of_a_sweep_have_one_scale_and_the_next_sweep_measures_a_doubtful_one_anew(
    tmp_path: Path, machine: list[LatencyRecord]
) -> None:
    machine += [latency(1.2, doubt=BUSY, disturbed=True)]
    old = taken(tmp_path, renew=True)
    assert taken(tmp_path).latency.latency_p50_ms == 1.2
    machine += [latency(1.0)]
    new = taken(tmp_path, renew=True)
    assert (new.latency.latency_p50_ms, new.keys[:-1]) == (1.0, old.keys)
    assert taken(tmp_path).keys == taken(tmp_path, renew=True).keys == new.keys
    assert machine == []
