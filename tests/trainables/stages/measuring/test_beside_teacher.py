import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tests.trainables.stages.measuring.latencies import latency, linear_file, measured, node
from tests.trainables.stages.measuring.linear_onnx import SIZE, linear_model, random_weight
from trainables.config.candidate import MeasureConfig
from trainables.records.latency import LatencyRecord
from trainables.records.stages import ShapeRecord
from trainables.stages.export.writer import export_untrained
from trainables.stages.measuring import beside_teacher, clean_room
from trainables.stages.measuring.beside_teacher import TAKES, find_or_measure, needs_another, shape_digest, time_beside
from trainables.stages.measuring.finished_file import same_shape
from trainables.stages.measuring.process import Job, Measured
from trainables.store.results import Key, Store, stage_key

BUSY = "CPU shared: others ran in its place for 8 % of the time"
FULL_S = 2.0


def shape(p50_ms: float, *, half_width: float = 0.01) -> ShapeRecord:
    return ShapeRecord(
        channel_ratio=0.0, shape="0", latency_p50_ms=p50_ms, latency_half_width=half_width,
        latency_verdict="clean", size_bytes=1, num_params=1, macs=1,
    )  # fmt: skip


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> tuple[list[LatencyRecord], list[float]]:
    """What the next clean rooms say, and the seconds that each was given."""
    coming: list[LatencyRecord] = []
    seconds: list[float] = []

    def measure(job: Job, _: object) -> Measured:
        seconds.append(job.seconds)
        return measured(coming.pop(0))

    monkeypatch.setattr(beside_teacher, "measure_apart", measure)
    return coming, seconds


def timed(folder: Path, known: ShapeRecord | None) -> LatencyRecord:
    reference = linear_file(folder)
    config = MeasureConfig(latency_seconds=FULL_S)
    return time_beside(config, folder / "model.onnx", reference, node(folder / "node"), known=known).candidate


def test_what_is_reported_is_what_the_clock_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rooms: tuple[list[LatencyRecord], list[float]]
) -> None:
    """Whatever the teacher does beside it."""
    rooms[0].append(latency(0.1))
    assert timed(tmp_path, None).latency_p50_ms == 0.1
    monkeypatch.setattr(beside_teacher, "measure_apart", clean_room.measure_apart)
    monkeypatch.setattr(clean_room, "PAUSE_S", 0.0)
    reference, config = linear_file(tmp_path), MeasureConfig(latency_seconds=0.1, latency_max_attempts=1)
    took = time_beside(config, tmp_path / "model.onnx", reference, node(tmp_path / "node"))
    assert 0 < took.candidate.latency_p50_ms <= took.candidate.latency_p90_ms
    assert took.candidate.latency_attempts == 1


def test_a_file_of_a_known_shape_gets_a_quarter_of_the_time(
    tmp_path: Path, rooms: tuple[list[LatencyRecord], list[float]]
) -> None:
    rooms[0].extend([latency(1.01), latency(1.0)])
    assert timed(tmp_path, shape(1.0)).latency_p50_ms == 1.01
    assert timed(tmp_path, None).latency_p50_ms == 1.0
    assert rooms[1] == [FULL_S / 4, FULL_S]


def test_only_a_clean_measurement_of_the_same_shape_shortens_another() -> None:
    clean = shape(1.0)
    assert same_shape(clean, "0") is clean
    assert same_shape(clean, "1") is same_shape(None, "0") is None
    assert same_shape(dataclasses.replace(clean, latency_verdict=BUSY), "0") is None


def test_a_file_off_its_shape_by_more_than_noise_is_measured_again_in_all_of_the_time(
    tmp_path: Path, rooms: tuple[list[LatencyRecord], list[float]]
) -> None:
    rooms[0].extend([latency(1.05), latency(1.0)])
    took = timed(tmp_path, shape(1.0))
    assert took.latency_p50_ms == 1.0
    assert rooms[1] == [FULL_S / 4, FULL_S]
    assert (took.latency_attempts, took.latency_alone_s) == (2, 2.0)


@pytest.mark.parametrize(
    ("took", "known", "another"),
    [
        (latency(1.03), shape(1.0), False),  # 1 % and 1 % of interval, and 2 % from process to process
        (latency(1.04), shape(1.0), True),
        (latency(0.96), shape(1.0), True),
        (latency(1.04, half_width=0.02), shape(1.0, half_width=0.02), False),
        (latency(1.0, doubt="p50 uncertain: known within 4.0 %"), shape(1.0), True),
        (latency(1.5, doubt=BUSY, disturbed=True), shape(1.0), False),  # the clean room has tried again already
    ],
)
def test_noise_is_what_both_intervals_and_two_processes_allow(
    took: LatencyRecord, known: ShapeRecord, another: bool
) -> None:
    assert needs_another(took, known) == another


@pytest.fixture
def takes(tmp_path: Path) -> Callable[..., tuple[str, bool, int]]:
    """Find or measure in a store: what is in the result, whether it is fresh, and how many keys it has."""
    store = Store(tmp_path / "store")

    def take(number: int) -> Key:
        return stage_key("latency", version=1, take=number)

    def find(says: str, *, again: bool = True) -> tuple[str, bool, int]:
        def compute(folder: Path) -> None:
            (folder / "record.json").write_text(f'"{says}"')

        def text(folder: Path) -> str:
            return (folder / "record.json").read_text().strip('"')

        found = find_or_measure(store, take, compute, lambda folder: text(folder) == "clean", again=again)
        return text(found.folder), found.fresh, len(found.keys)

    return find


def test_what_is_clean_is_found_and_what_is_not_is_measured_anew(takes: Callable[..., tuple[str, bool, int]]) -> None:
    assert takes("dirty") == ("dirty", True, 1)
    assert takes("never", again=False) == ("dirty", False, 1)
    assert takes("clean") == ("clean", True, 2)
    assert takes("never") == takes("never", again=False) == ("clean", False, 2)


def test_a_machine_that_is_never_quiet_is_not_asked_for_ever(takes: Callable[..., tuple[str, bool, int]]) -> None:
    said = [takes(f"dirty {number}")[0] for number in range(TAKES + 2)]
    assert said == ["dirty 0", "dirty 1", "dirty 2", "dirty 2", "dirty 2"]


def test_an_untrained_network_has_the_file_that_it_will_have_when_trained(tmp_path: Path) -> None:
    """The exporter leaves out biases of zero and writes equal tensors once: size and latency would be too low."""

    def write(name: str, net: nn.Module) -> Path:
        about = {"image_size": SIZE, "class_names": ["a", "b"], "recipe": {}, "opset": 20}
        path = tmp_path / name
        export_untrained(net, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), path=path, **about)
        return path

    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.LayerNorm((8, 4, 4))]
    net = nn.Sequential(*layers, nn.LayerNorm((8, 4, 4)), nn.Flatten(), nn.Linear(128, 2)).eval()
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.zeros_(layer.bias)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    untrained = write("untrained.onnx", net)
    assert all(bool((net.state_dict()[name] == value).all()) for name, value in before.items())  # the file alone
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.rand_like(parameter))
    trained = write("trained.onnx", net)
    assert shape_digest(untrained) == shape_digest(trained)
    assert untrained.stat().st_size == trained.stat().st_size


def test_files_of_one_shape_share_a_digest_whatever_their_weights(tmp_path: Path) -> None:
    one = linear_model(tmp_path / "one.onnx", random_weight())
    other = linear_model(tmp_path / "other.onnx", 2 * random_weight())
    wider = linear_model(tmp_path / "wider.onnx", random_weight(5))
    assert shape_digest(one) == shape_digest(other) != shape_digest(wider)
    model = onnx.load(one)
    model.graph.node[1].op_type = "Gemm"
    onnx.save(model, other)
    assert shape_digest(one) != shape_digest(other)
    model = onnx.load(one)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(random_weight().astype(np.float16), "weight"))
    onnx.save(model, other)
    assert shape_digest(one) != shape_digest(other)
