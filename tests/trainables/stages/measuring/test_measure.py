import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sweeps.planning.reachable import time_alternating
from tests.trainables.stages.measuring.linear_onnx import CLASSES, SIZE, linear_model, random_weight
from trainables.stages.export.session import accuracy, open_session, run_logits


@pytest.fixture
def weight() -> np.ndarray:
    return random_weight()


@pytest.fixture
def model(tmp_path: Path, weight: np.ndarray) -> Path:
    return linear_model(tmp_path / "model.onnx", weight)


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_accuracy_is_that_of_numpy(tmp_path: Path, model: Path, weight: np.ndarray, batch: int) -> None:
    rng = np.random.default_rng(1)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, size=(50, 3, SIZE, SIZE), dtype=np.uint8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    labels = rng.integers(0, CLASSES, size=50)
    predicted = ((images.astype(np.float32) / 255).reshape(50, -1) @ weight).argmax(axis=1)
    assert accuracy(open_session(model, 1), images, labels, batch) == (predicted == labels).mean()


def test_accuracy_refuses_nonsense(tmp_path: Path, model: Path, weight: np.ndarray) -> None:
    images = np.zeros((2, 3, SIZE, SIZE), dtype=np.uint8)
    with pytest.raises(ValueError, match="images=2, labels=3"):
        accuracy(open_session(model, 1), images, np.zeros(3, dtype=np.int64))
    broken = linear_model(tmp_path / "nan.onnx", np.full_like(weight, np.nan))
    with pytest.raises(ValueError, match="images 0 to 1 got nan or inf"):
        accuracy(open_session(broken, 1), images, np.zeros(2, dtype=np.int64))


def test_session_is_on_the_cpu_with_the_threads_asked_for(model: Path) -> None:
    session = open_session(model, 2)
    options = session.get_session_options()
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


def test_session_from_bytes(model: Path, weight: np.ndarray) -> None:
    images = np.random.default_rng(2).random((3, 3, SIZE, SIZE), dtype=np.float32)
    logits = run_logits(open_session(model.read_bytes(), 1), images)
    np.testing.assert_allclose(logits, images.reshape(3, -1) @ weight, rtol=1e-4, atol=1e-4)


def test_latency_tells_a_large_model_from_a_small_one(tmp_path: Path, model: Path) -> None:
    rng = np.random.default_rng(0)
    large = linear_model(tmp_path / "large.onnx", rng.normal(size=(3 * SIZE * SIZE, 40_000)))
    slow, fast = time_alternating(large, model, threads=1, seconds=0.5)
    assert slow.latency_p50_ms > 3 * fast.latency_p50_ms
    for record in (slow, fast):
        assert 0 < record.latency_p50_ms <= record.latency_p90_ms <= record.latency_p99_ms
        assert record.latency_n >= 10
        assert record.latency_n % 2 == 0
        assert (record.latency_device, record.latency_provider) == ("cpu:1", "CPUExecutionProvider")


def test_a_file_against_itself_is_as_fast(model: Path) -> None:
    assert gc.isenabled()
    ours, again = time_alternating(model, model, threads=1, seconds=0.5)
    assert ours.latency_n >= 10 and again.latency_n >= 10  # each side's blocks are as long as its own warm-up says
    assert ours.latency_p50_ms == pytest.approx(again.latency_p50_ms, rel=0.3)
    assert gc.isenabled()


def test_measuring_needs_no_torch() -> None:
    modules = "trainables.stages.measuring.clean_room, trainables.stages.runtimes.onnx_runtimes"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
