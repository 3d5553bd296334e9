import math
from collections.abc import Callable
from pathlib import Path

import pytest
from linear_onnx import linear_model, random_weight

from trainables.configs import MeasureConfig
from trainables.latency import LatencyRecord
from trainables.records import ExportRecord
from trainables.stages import clean_room
from trainables.stages.timed import agreed, anchor, timed
from trainables.stages.workspace import Workspace
from trainables.store import Store


def latency(p50_ms: float, *, noisy: bool = False, contaminated: str = "") -> LatencyRecord:
    return LatencyRecord(
        latency_p50_ms=p50_ms,
        latency_p90_ms=p50_ms,
        latency_p99_ms=p50_ms,
        latency_raw_p50_ms=p50_ms,
        latency_p90_bound_ms=None,
        latency_n=100,
        latency_half_width=0.01,
        latency_noisy=noisy,
        latency_device="cpu:1",
        latency_provider="CPUExecutionProvider",
        latency_contaminated=contaminated,
    )


def taking(*results: LatencyRecord) -> tuple[Callable[[], LatencyRecord], list[LatencyRecord]]:
    """Something that measures these one after the other, and what is left of them."""
    left = list(results)
    return lambda: left.pop(0), left


@pytest.mark.parametrize(
    ("times", "expected", "unused"),
    [
        ((1.00, 1.02, 9.0, 9.0), 1.00, 2),  # two agree at once: the faster
        ((1.30, 1.01, 1.00, 9.0), 1.00, 1),  # the first in a slow spell
        ((1.30, 1.00, 1.20, 1.31), 1.30, 0),  # the fourth agrees with the first
    ],
)
def test_the_scale_of_all_latencies_is_measured_until_two_agree(
    times: tuple[float, ...], expected: float, unused: int
) -> None:
    take, left = taking(*map(latency, times))
    found = agreed(take)
    assert (found.latency_p50_ms, found.verdict, len(left)) == (expected, "clean", unused)


def test_four_that_differ_are_noisy() -> None:
    found = agreed(taking(*map(latency, (1.3, 1.0, 1.2, 1.1)))[0])
    assert found.latency_p50_ms == 1.0
    assert found.verdict.startswith("noisy")


@pytest.mark.parametrize("why", [{"noisy": True}, {"contaminated": "8 % of its CPUs were used by others"}])
def test_a_machine_that_is_not_quiet_is_not_asked_again(why: dict[str, bool | str]) -> None:
    disturbed = latency(1.0, **why)
    take, left = taking(disturbed, disturbed)
    assert agreed(take) is disturbed and len(left) == 1
    take, left = taking(latency(1.2), disturbed, disturbed)
    assert agreed(take).latency_p50_ms == 1.2 and len(left) == 1


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    folder = tmp_path / "node"
    return Workspace(store=Store(folder), data_dir=folder, device="cpu", threads=1, lease_dir=folder)


@pytest.fixture
def reference(tmp_path: Path) -> ExportRecord:
    linear_model(tmp_path / "model.onnx", random_weight())
    return ExportRecord(
        key="", folder=tmp_path, size_bytes=1, torchscript_bytes=None, onnx_sha256="0",
        parity_max_abs=0.0, parity_agreement=1.0, parity_images=1,
    )  # fmt: skip


def test_half_of_the_drift_is_taken_out_and_a_large_one_contaminates(
    place: Workspace, reference: ExportRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_room, "PAUSE_S", 0.0)
    measure = MeasureConfig(latency_seconds=0.1)
    path = reference.folder / "model.onnx"
    took = timed(measure, path, reference, latency(1e-4), place).latency  # no file is as fast as that
    assert took.latency_attempts >= 2
    assert took.conditions is not None and took.conditions.drift is not None
    assert f"the reference took {100 * took.conditions.drift:.0f} % more than its own time" in took.latency_contaminated
    assert took.metrics()["latency_drift"] == took.conditions.drift
    assert took.latency_p50_ms == pytest.approx(took.latency_raw_p50_ms / math.sqrt(1 + took.conditions.drift))


def test_a_scale_that_is_not_clean_itself_condemns_nothing(place: Workspace, reference: ExportRecord) -> None:
    own = latency(1e-4, noisy=True)
    took = timed(MeasureConfig(latency_seconds=0.1), reference.folder / "model.onnx", reference, own, place).latency
    assert took.conditions is not None and took.conditions.drift is None
    assert "own time" not in took.verdict


def test_the_scale_is_measured_once(place: Workspace, reference: ExportRecord) -> None:
    measure = MeasureConfig(latency_seconds=0.1)

    def taken() -> LatencyRecord:
        steps = anchor(measure, reference, place)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    assert taken() == taken()
