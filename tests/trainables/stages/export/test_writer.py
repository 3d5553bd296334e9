import copy
import hashlib
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from trainables.layout import ONNX_FILE, TORCHSCRIPT_FILE
from trainables.records.stages import ExportRecord
from trainables.stages.export import writer as export_module
from trainables.stages.export.session import open_session, run_logits
from trainables.stages.export.writer import export
from trainables.stages.models.build import build_model
from trainables.stages.models.inspection import recalibrate_bn
from trainables.stages.pruning.methods import prune

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZE = 16


def _images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def _export(model: nn.Module, folder: Path, images: Tensor | None = None) -> ExportRecord:
    return export(
        model,
        mean=MEAN,
        std=STD,
        image_size=SIZE,
        class_names=["cat", "dog", "näve"],
        recipe={"temperature": 4.0, "student_model": "alexnet_small"},
        parity_images=_images(40) if images is None else images,
        opset=20,
        folder=folder,
        key="key",
    )


def _expected(model: nn.Module, images: Tensor) -> np.ndarray:
    normalised = (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        return np.asarray(copy.deepcopy(model).eval()(normalised))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model("alexnet_small", num_classes=3, image_size=SIZE).train().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def record(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> ExportRecord:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the exporters' deprecation warnings stay inside
        return _export(model, tmp_path_factory.mktemp("export") / "new")


def test_record_describes_the_files(record: ExportRecord) -> None:
    data = (record.folder / ONNX_FILE).read_bytes()
    assert record.size_bytes == len(data)
    assert record.onnx_sha256 == hashlib.sha256(data).hexdigest()
    assert record.torchscript_bytes == (record.folder / TORCHSCRIPT_FILE).stat().st_size
    assert (record.parity_images, record.parity_agreement) == (40, 1.0)
    assert 0 <= record.parity_max_abs < 1e-4
    assert sorted(path.name for path in record.folder.iterdir()) == [ONNX_FILE, TORCHSCRIPT_FILE]


# TorchScript is what users ask for, and has no other loader.
@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*is deprecated")
@pytest.mark.parametrize("batch", [1, 2, 5, 17])
def test_any_batch_size_normalised_inside(model: nn.Module, record: ExportRecord, batch: int) -> None:
    images = _images(batch, seed=3)
    expected = _expected(model, images)
    session = open_session(record.folder / ONNX_FILE, 1)
    np.testing.assert_allclose(run_logits(session, images.numpy()), expected, atol=1e-4)
    script = torch.jit.load(record.folder / TORCHSCRIPT_FILE)
    np.testing.assert_allclose(script(images).numpy(), expected, atol=1e-4)


def test_signature_opset_and_metadata(record: ExportRecord) -> None:
    proto = onnx.load(record.folder / ONNX_FILE)
    (image,), (logits,) = proto.graph.input, proto.graph.output
    dims = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert (image.name, logits.name, dims) == ("image", "logits", ["batch", 3, SIZE, SIZE])
    assert logits.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] == 20
    about = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert about == {
        "class_names": ["cat", "dog", "näve"],
        "image_size": SIZE,
        "recipe": {"temperature": 4.0, "student_model": "alexnet_small"},
    }


def test_no_path_of_this_machine_in_the_files(record: ExportRecord, tmp_path: Path) -> None:
    data = (record.folder / ONNX_FILE).read_bytes()
    with zipfile.ZipFile(record.folder / TORCHSCRIPT_FILE) as archive:
        data += b"".join(archive.read(name) for name in archive.namelist())
    secrets = (tmp_path.parts[1], "site-packages", str(Path.home()), str(Path.cwd()), Path(__file__).name)
    for secret in secrets:
        assert f"{secret}/".encode() not in data
        assert f"/{secret.strip('/')}".encode() not in data


def test_exporting_again_gives_the_same_file_and_leaves_the_model_alone(
    model: nn.Module, record: ExportRecord, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = _export(model, tmp_path)
    assert again.onnx_sha256 == record.onnx_sha256
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert capfd.readouterr() == ("", "")


def test_parity_gate_stops_broken_logits(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "run_logits", lambda session, x: run_logits(session, x) * 1.01)
    with pytest.raises(ValueError, match=r"ONNX disagrees with eager PyTorch: relative logit error 0.01 must be"):
        _export(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_parity_gate_reads_torchscript_too(model: nn.Module, tmp_path: Path) -> None:
    class Frozen(nn.Module):
        """Python control flow: the tracer keeps the branch of its example."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, images: Tensor) -> Tensor:
            mean = images.mean(dim=(2, 3))
            logits: Tensor = self.inner(mean)
            return logits + 1 if torch.jit.is_tracing() else logits

    with pytest.raises(ValueError, match="TorchScript disagrees with eager PyTorch: relative logit error"):
        _export(Frozen(), tmp_path)


def test_a_model_that_cannot_be_traced_has_no_torchscript(tmp_path: Path) -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, images: Tensor) -> Tensor:
            if torch.jit.is_tracing():
                raise RuntimeError("not while tracing")
            logits: Tensor = self.inner(images.mean(dim=(2, 3)))
            return logits

    record = _export(Untraceable(), tmp_path)
    assert record.torchscript_bytes is None
    assert [path.name for path in tmp_path.iterdir()] == [ONNX_FILE]


def test_parity_needs_images(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`parity_images` must hold at least one image, but got 0"):
        _export(model, tmp_path, images=_images(0))


@pytest.mark.parametrize("images", [1, 3, 5, 12, 150])
def test_parity_batches(images: int) -> None:
    sizes = [len(chunk) for chunk in export_module.parity_chunks(_images(images))]
    assert sum(sizes) == images
    assert sizes == {1: [1], 3: [1, 2], 5: [1, 3, 1], 12: [1, 3, 8], 150: [1, 3, 8, 64, 64, 10]}[images]


def test_nan_logits_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 3))
    nn.init.constant_(model[1].bias, float("nan"))
    with pytest.raises(ValueError, match=r"logits must be finite, but .* nan or inf"):
        _export(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_pruned_networks_with_batchnorm(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=3, image_size=SIZE)
    prune(model, method="structured", ratio=0.5, image_size=SIZE, num_classes=3)
    recalibrate_bn(model, [_images(32, seed=5)])
    record = _export(model, tmp_path)
    images = _images(2, seed=6)
    logits = run_logits(open_session(tmp_path / ONNX_FILE, 1), images.numpy())
    np.testing.assert_allclose(logits, _expected(model, images), rtol=1e-3, atol=1e-4)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(record.folder / ONNX_FILE).graph.node}
