"""Files of lower precision, made of a small network that has learned the digits."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from sklearn.datasets import load_digits
from torch import nn

from trainables.stages.export import onnx_files
from trainables.stages.export import scheme as scheme_module
from trainables.stages.export.convert import convert_fp16, quantize_int8
from trainables.stages.export.onnx_files import describe
from trainables.stages.export.scheme import Scheme, scheme_for
from trainables.stages.export.session import accuracy, open_session, run_logits
from trainables.stages.export.stage import distance
from trainables.stages.export.writer import export
from trainables.stages.models.build import build_model
from trainables.stages.models.devices import processor
from trainables.stages.models.inspection import recalibrate_bn
from trainables.stages.pruning.methods import prune

SIZE = 8
ABOUT = {"class_names": [str(i) for i in range(10)], "image_size": SIZE}


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10)),
    )


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 3, 8, 8] and labels."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.round(pixels * 255 / 16).astype(np.uint8).reshape(-1, 1, SIZE, SIZE)
    return np.ascontiguousarray(np.broadcast_to(images, (len(images), 3, SIZE, SIZE))), labels


@pytest.fixture(scope="module")
def model(digits: tuple[np.ndarray, np.ndarray]) -> nn.Module:
    torch.manual_seed(0)
    net = network().train()
    images, labels = torch.from_numpy(digits[0][:1200]).float() / 255, torch.from_numpy(digits[1][:1200])
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(6):
        for index in torch.randperm(1200).split(100):
            optimizer.zero_grad()
            F.cross_entropy(net((images[index] - 0.5) / 0.5), labels[index]).backward()
            optimizer.step()
    return net.eval()


def written(net: nn.Module, images: np.ndarray, folder: Path, *, image_size: int = SIZE) -> Path:
    parity = torch.from_numpy(images[:32]).float() / 255
    record = export(
        net,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        image_size=image_size,
        class_names=ABOUT["class_names"],
        recipe={"student_model": "tiny", "precision": "fp32"},
        parity_images=parity,
        opset=20,
        folder=folder,
        key="key",
    )
    return record.folder / "model.onnx"


@pytest.fixture(scope="module")
def plain(model: nn.Module, digits: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(model, digits[0], tmp_path_factory.mktemp("fp32"))


@pytest.fixture(scope="module")
def calibration(digits: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return digits[0][:64].astype(np.float32) / np.float32(255)


def _accuracy(path: Path, digits: tuple[np.ndarray, np.ndarray]) -> float:
    return accuracy(open_session(path, 1), digits[0][1200:], digits[1][1200:])


UNSIGNED = Scheme(activation="uint8", symmetric=False, reduce_range=False)
SCHEMES = [UNSIGNED, dataclasses.replace(UNSIGNED, reduce_range=True), scheme_for("tensorrt")]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_int8_keeps_the_accuracy_in_a_quarter_of_the_bytes(
    scheme: Scheme, plain: Path, calibration: np.ndarray, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    file = tmp_path / "int8.onnx"
    quantize_int8(plain, file, calibration, scheme)
    assert _accuracy(plain, digits) > 0.85
    assert abs(_accuracy(file, digits) - _accuracy(plain, digits)) < 0.02
    max_abs, agreement = distance(file, plain, torch.from_numpy(digits[0][1200:1500]).float() / 255)
    assert agreement > 0.95  # of a net whose close calls depend on the processor: 0.960 to 0.973 on three of them
    assert max_abs > 0
    assert file.stat().st_size < 0.45 * plain.stat().st_size


def test_int8_files_hold_the_schemes_integers_and_the_metadata(
    plain: Path, calibration: np.ndarray, tmp_path: Path
) -> None:
    kinds = {}
    for name, scheme in {"cpu": UNSIGNED, "tensorrt": scheme_for("tensorrt")}.items():
        quantize_int8(plain, tmp_path / f"{name}.onnx", calibration, scheme)
        proto = onnx.load(tmp_path / f"{name}.onnx")
        known = {entry.name: entry for entry in proto.graph.initializer}
        zeros = [known[node.input[2]] for node in proto.graph.node if node.op_type == "QuantizeLinear"]
        kinds[name] = {zero.data_type for zero in zeros}
        if name == "tensorrt":
            assert all(not onnx.numpy_helper.to_array(zero).any() for zero in zeros)
        about = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
        assert about == ABOUT | {"recipe": {"student_model": "tiny", "precision": "fp32"}}
        inputs = (known.get(node.input[0]) for node in proto.graph.node if node.op_type == "DequantizeLinear")
        weights = [entry for entry in inputs if entry is not None and entry.data_type == TensorProto.INT8]
        assert len(weights) == 3
    assert kinds == {"cpu": {TensorProto.UINT8}, "tensorrt": {TensorProto.INT8}}


def test_quantising_again_gives_the_same_file(plain: Path, calibration: np.ndarray, tmp_path: Path) -> None:
    for name in ("one.onnx", "two.onnx"):
        quantize_int8(plain, tmp_path / name, calibration, UNSIGNED)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "one.onnx").read_bytes()


def test_fp16_halves_the_file_and_takes_and_gives_float32(
    plain: Path, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    file = tmp_path / "fp16.onnx"
    convert_fp16(plain, file)
    assert file.stat().st_size < 0.6 * plain.stat().st_size
    images = digits[0][1200:1210].astype(np.float32) / np.float32(255)
    got, expected = (run_logits(open_session(path, 1), images) for path in (file, plain))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=0.01 * np.abs(expected).max())
    assert onnx_files.about(file) == onnx_files.about(plain)


def test_a_file_can_be_described_anew(plain: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy.onnx"
    file.write_bytes(plain.read_bytes())
    describe(file, {"recipe": json.dumps({"precision": "int8_ptq"})})
    assert onnx_files.about(file) == onnx_files.about(plain) | {"recipe": '{"precision": "int8_ptq"}'}
    onnx.checker.check_model(onnx.load(file))


@pytest.mark.parametrize(
    ("flags", "known"),
    [("fpu avx512_vnni sse", True), ("fpu avx_vnni", True), ("fpu avx512f", False), (None, False)],
)
def test_the_processor_says_whether_it_has_vnni(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, known: bool
) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert scheme_module.has_vnni() == known


def test_what_runs_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheme_module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(scheme_module, "has_vnni", lambda: True)
    assert scheme_for("onnxruntime_cpu") == UNSIGNED
    monkeypatch.setattr(scheme_module, "has_vnni", lambda: False)
    assert scheme_for("onnxruntime_cpu").reduce_range
    monkeypatch.setattr(scheme_module.platform, "machine", lambda: "aarch64")
    assert scheme_for("onnxruntime_cpu") == scheme_for("tensorrt")
    with pytest.raises(ValueError, match=r"`target` must be one of onnxruntime_cpu, .*, but got target='tpu'"):
        scheme_for("tpu")


def test_no_calibration_images(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="INT8 needs calibration images, but got 0"):
        quantize_int8(plain, tmp_path / "x.onnx", np.zeros((0, 3, SIZE, SIZE), np.float32), UNSIGNED)


def test_a_graph_without_anything_to_quantise_is_refused_with_a_reason(tmp_path: Path) -> None:
    shape = ["batch", 3, SIZE, SIZE]
    image, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "logits"))
    graph = helper.make_graph([helper.make_node("Sin", ["image"], ["logits"])], "g", [image], [logits])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "a.onnx")
    images = np.zeros((4, 3, SIZE, SIZE), np.float32)
    with pytest.raises(ValueError, match=r"cannot be written in INT8 .*no operator of this network"):
        quantize_int8(tmp_path / "a.onnx", tmp_path / "b.onnx", images, UNSIGNED)
    assert not (tmp_path / "b.onnx").exists()


def test_a_file_that_is_none_is_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="cannot be written in FP16"):
        convert_fp16(tmp_path / "a.onnx", tmp_path / "b.onnx")


def test_openvino_agrees_on_every_kind_of_file(
    model: nn.Module,
    plain: Path,
    calibration: np.ndarray,
    digits: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    """A runtime that shares no code with ONNX Runtime."""
    openvino = pytest.importorskip("openvino", reason="an extra: uv sync --extra openvino")
    pruned = network()
    pruned.load_state_dict(model.state_dict())
    prune(pruned, method="structured", ratio=0.3, image_size=SIZE, num_classes=10)
    files = {"fp32": plain, "pruned": written(pruned.eval(), digits[0], tmp_path / "pruned")}
    files |= {name: tmp_path / f"{name}.onnx" for name in ("fp16", "int8", "int8_tensorrt")}
    convert_fp16(plain, files["fp16"])
    quantize_int8(plain, files["int8"], calibration, UNSIGNED)
    quantize_int8(plain, files["int8_tensorrt"], calibration, scheme_for("tensorrt"))
    images = digits[0][1200:1300].astype(np.float32) / np.float32(255)
    agree(openvino, files, images)


def agree(openvino: Any, files: Mapping[str, Path], images: np.ndarray, *, alike: float = 0.97) -> None:
    """Logits and classes of every file are the same in OpenVINO and in ONNX Runtime."""
    core = openvino.Core()
    for name, file in files.items():
        compiled = core.compile_model(core.read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        got, expected = compiled(images)[0], run_logits(open_session(file, 1), images)
        loose = 0.1 if name.startswith("int8") else 0.01 if name == "fp16" else 1e-4
        np.testing.assert_allclose(got, expected, atol=loose * np.abs(expected).max(), err_msg=name)
        assert (got.argmax(1) == expected.argmax(1)).mean() >= alike, name


@pytest.mark.parametrize(
    "name", ["alexnet", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("resnet18", "mobilenet_v3_small"))]
)
def test_openvino_agrees_on_the_networks_people_use(name: str, tmp_path: Path) -> None:
    """Residual sums, squeeze-and-excite, hard-swish, depthwise convolutions, pooling: dense, cut, zeroed, smaller."""
    openvino = pytest.importorskip("openvino", reason="an extra: uv sync --extra openvino")
    torch.manual_seed(0)
    images = np.random.default_rng(0).random((16, 3, 32, 32), dtype=np.float32)
    files: dict[str, Path] = {}
    for way in ({}, {"method": "structured", "ratio": 0.3}, {"method": "l1_unstructured", "ratio": 0.3}):
        net = build_model(name, num_classes=10, image_size=32)
        recalibrate_bn(net, [torch.from_numpy(images) * 4 - 2])
        if way:
            prune(net, **way, image_size=32, num_classes=10)
        kind = str(way.get("method", "fp32"))
        files[kind] = written(net.eval(), (images * 255).astype(np.uint8), tmp_path / kind, image_size=32)
    for kind in ("fp16", "int8"):
        files[kind] = tmp_path / f"{kind}.onnx"
    convert_fp16(files["fp32"], files["fp16"])
    quantize_int8(files["fp32"], files["int8"], images, scheme_for("onnxruntime_cpu"))
    agree(openvino, files, images, alike=0.8)  # untrained networks: some classes are nearly equal
