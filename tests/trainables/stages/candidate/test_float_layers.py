"""INT8 files of networks with layers that integers cannot hold: they are found, kept in float and named."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch

from trainables.config.candidate import CandidateConfig
from trainables.layout import ONNX_FILE
from trainables.records.stages import ExportRecord, ModelRecord
from trainables.stages.candidate.chain import Chain
from trainables.stages.data import prepared
from trainables.stages.export import onnx_files
from trainables.stages.export.convert import Int8Converter, quantize_int8
from trainables.stages.export.float_layers import keep_in_float
from trainables.stages.export.scheme import scheme_for
from trainables.stages.export.session import accuracy, open_session
from trainables.stages.export.stage import calibration_pixels, export_model, export_teacher, parity_images
from trainables.stages.export.writer import export
from trainables.stages.models.stored import load_model
from trainables.stages.training.teacher import train_teacher
from trainables.stages.workspace import Bench, Workspace
from trainables.store.results import Store, stage_key

# Digits are grey, so `planted` adds nothing to any output; but the rest of each kernel is far below its scale in INT8.
NETS = """
import torch
from torch import nn

def plain(*, num_classes):
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                         nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Linear(128, num_classes))

def planted(*, num_classes):
    net = plain(num_classes=num_classes)
    with torch.no_grad():
        net[0].weight[:, 0] += 100
        net[0].weight[:, 1] -= 100
    return net
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    root = tmp_path_factory.mktemp("float_layers")
    (root / "int8_nets.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        place = Workspace(
            store=Store(root / "store"),
            data=config().data,
            data_dir=root / "data",
            device="cpu",
            threads=1,
            lock_dir=root / "locks",
        )
        place.enter()
        yield place


def config(net: str = "plain", **changes: object) -> CandidateConfig:
    """The trained network itself, nothing removed, in INT8."""
    return CandidateConfig().replace(
        **{"dataset": "digits", "flip": False, "batch_size": 32, "latency_seconds": 0.1, "latency_max_attempts": 1}
        | {"teacher_model": f"int8_nets:{net}", "teacher_epochs": 6, "teacher_learning_rate": 4e-3}
        | {"student_model": "teacher", "pruning_ratio": 0.0, "precision": "int8_ptq"}
        | changes
    )


def exported(place: Workspace, settings: CandidateConfig) -> tuple[Bench, ModelRecord, ExportRecord]:
    bench = Bench.of(settings.resolve(place.dataset(), device="cpu"), place)
    steps = train_teacher(bench)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return bench, end.value, export_model(bench, end.value, bench.candidate.recipe())


def overwrite(path: Path, content: bytes) -> None:
    """Replace a file's bytes, but not its time: data with changed files would be decoded again."""
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def val_accuracy(place: Workspace, file: Path | bytes) -> float:
    return accuracy(open_session(file, 1), *prepared.load(place.dataset(), "val"))


def test_a_layer_that_int8_ruins_is_kept_in_float_and_named(place: Workspace) -> None:
    _, _, fp32 = exported(place, config("planted", precision="fp32"))
    _, _, whole = exported(place, config("planted", int8_tolerance=1.0))
    best = val_accuracy(place, fp32.folder / ONNX_FILE)
    assert best > 0.8
    assert val_accuracy(place, whole.folder / ONNX_FILE) < best - 0.3
    assert whole.kept_in_float == ()

    test_images = place.dataset().folder / "test_images.npy"
    pixels = test_images.read_bytes()
    overwrite(test_images, bytes(len(pixels)))  # the choice may not read them: it would fail
    bench, network, mixed = exported(place, config("planted"))
    overwrite(test_images, pixels)
    assert mixed.kept_in_float == ("0",)
    record = Chain(bench).finish("candidate", [network], network, mixed, export_teacher(bench, network))
    assert record.measurement.val_accuracy >= best - 0.01
    assert record.tags()["kept_in_float"] == "0"
    assert record.metrics()["num_float_layers"] == 1
    assert whole.size_bytes < mixed.size_bytes < fp32.size_bytes
    about = onnx_files.about(mixed.folder / ONNX_FILE)
    assert json.loads(about["kept_in_float"]) == ["0"]
    assert json.loads(about["recipe"])["int8_tolerance"] == 0.01
    proto = onnx.load(mixed.folder / ONNX_FILE)
    convolutions = [node.input[1] for node in proto.graph.node if node.op_type == "Conv"]
    assert [name.endswith("DequantizeLinear_Output") for name in convolutions] == [False, True, True]
    assert exported(place, config("planted"))[2] == mixed


def test_a_network_that_quantises_well_has_the_key_and_the_bytes_it_always_had(
    place: Workspace, tmp_path: Path
) -> None:
    _, _, fp32 = exported(place, config(precision="fp32"))
    _, _, int8 = exported(place, config(int8_tolerance=0.05))  # few images: another processor's rounding costs 0.01
    assert int8.kept_in_float == ()
    scheme = scheme_for("onnxruntime_cpu")
    parts = {"precision": "int8_ptq", "calibration_images": 256} | vars(scheme)
    parents = [fp32.key, place.dataset().fingerprint]
    assert int8.key == str(stage_key("converted", version=3, parents=parents, **parts))
    assert exported(place, config(int8_tolerance=0.5))[2] == int8

    file, recipe = tmp_path / "int8.onnx", config().resolve(place.dataset(), device="cpu").recipe()
    quantize_int8(fp32.folder / ONNX_FILE, file, calibration_pixels(place.dataset(), 256), scheme)
    del recipe["int8_tolerance"]
    onnx_files.describe(file, {"recipe": onnx_files.pad(json.dumps(recipe, sort_keys=True, default=str))})
    assert file.read_bytes() == (int8.folder / ONNX_FILE).read_bytes()
    assert "int8_tolerance" not in onnx_files.about(fp32.folder / ONNX_FILE)["recipe"]


def test_an_outlier_between_two_layers_keeps_both_in_float(place: Workspace, tmp_path: Path) -> None:
    """One channel of a tensor is 10,000 times as large as the others; the layer that reads it divides it again."""
    dataset = place.dataset()
    _, record, fp32 = exported(place, config(precision="fp32"))
    network = load_model(record)
    first, second = network.get_submodule("0"), network.get_submodule("2")
    with torch.no_grad():
        first.weight[0] *= 1e4
        first.bias[0] *= 1e4
        second.weight[:, 0] /= 1e4
    about = {
        "mean": dataset.mean,
        "std": dataset.std,
        "class_names": dataset.class_names,
        "image_size": dataset.image_size,
    }
    images = parity_images(dataset)
    export(network, **about, recipe={}, parity_images=images, opset=20, folder=tmp_path / "fp32", key="")
    best = val_accuracy(place, tmp_path / "fp32" / ONNX_FILE)
    assert best == val_accuracy(place, fp32.folder / ONNX_FILE)

    pixels = calibration_pixels(dataset, 256)
    converter = Int8Converter(tmp_path / "fp32" / ONNX_FILE, pixels, scheme_for("onnxruntime_cpu"), tmp_path)
    lost = best - val_accuracy(place, converter.convert())
    assert lost > 0.1
    found = keep_in_float(converter, lambda file: best - val_accuracy(place, file), whole=lost, tolerance=0.02)
    assert found is not None
    assert set(found[1]) == {"0", "2"}
    assert best - val_accuracy(place, found[0]) <= 0.02
    # half of the layers that help, but not enough, are kept; those that do not help are not
    assert keep_in_float(converter, lambda file: 0.3, whole=0.5, tolerance=0.01) == found
    assert keep_in_float(converter, lambda file: 0.5, whole=0.5, tolerance=0.01) is None
