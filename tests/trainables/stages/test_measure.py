import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trainables.stages.measure import accuracy, median_half_width, open_session, run_logits, time_alternating

SIZE, CLASSES = 8, 4


def _linear_model(path: Path, weight: np.ndarray) -> Path:
    """logits = flatten(image) @ weight, written by hand."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3 * SIZE * SIZE, CLASSES)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path, weight: np.ndarray) -> Path:
    return _linear_model(tmp_path / "model.onnx", weight)


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
    broken = _linear_model(tmp_path / "nan.onnx", np.full_like(weight, np.nan))
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
    large = _linear_model(tmp_path / "large.onnx", rng.normal(size=(3 * SIZE * SIZE, 40_000)))
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
    assert ours.latency_n == again.latency_n
    assert ours.latency_p50_ms == pytest.approx(again.latency_p50_ms, rel=0.3)
    assert gc.isenabled()


def test_half_width_of_equal_times_is_zero() -> None:
    assert median_half_width([[2.0] * 5] * 8) == 0


def test_half_width_sees_drift_between_blocks() -> None:
    # within a block nothing varies: resampling single runs would claim a far tighter interval than blocks do
    drifting = [[1.0 + 0.1 * block] * 50 for block in range(10)]
    shuffled = np.random.default_rng(0).permutation(np.concatenate(drifting)).reshape(10, 50).tolist()
    assert median_half_width(drifting) > 2 * median_half_width(shuffled)


def test_measuring_needs_no_torch() -> None:
    code = "import sys, trainables.stages.measure, trainables.stages.lease; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
