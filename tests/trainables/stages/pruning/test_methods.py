import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainables.stages.models.build import build_model
from trainables.stages.models.inspection import count, evaluating
from trainables.stages.models.weights import load_weights, save_weights
from trainables.stages.pruning.methods import PruneSummary, masks, prune
from trainables.stages.training.stage import apply_masks


class Residual(nn.Module):
    """A user's network: a shortcut, a depthwise and a grouped convolution, a flatten before the classifier."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=4)
        self.classifier = nn.Linear(width * 16, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(images)))
        x = x + self.grouped(self.depthwise(x))
        logits: Tensor = self.classifier(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))
        return logits


def _prune(model: nn.Module, method: str, ratio: float, num_classes: int = 5) -> PruneSummary:
    return prune(model, method=method, ratio=ratio, image_size=32, num_classes=num_classes)


def _logits(model: nn.Module) -> Tensor:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with evaluating(model), torch.no_grad():
        logits: Tensor = model(images)
    return logits


@pytest.mark.parametrize("method", ["structured", "l1_unstructured"])
def test_ratio_0_leaves_logits_bit_for_bit(method: str) -> None:
    model = build_model("mobilenet_v3_small", num_classes=5, image_size=32)
    before = _logits(model)
    summary = _prune(model, method, 0.0)
    assert torch.equal(_logits(model), before)
    assert (summary.achieved_params_ratio, summary.achieved_macs_ratio, summary.sparsity) == (0, 0, 0)


def test_l1_zeroes_the_smallest_weights_of_every_layer() -> None:
    model = Residual()
    before = {name: layer.weight.detach().clone() for name, layer in model.named_modules() if hasattr(layer, "weight")}
    order = list(model.state_dict())
    summary = _prune(model, "l1_unstructured", 0.3)
    for name in ("stem", "depthwise", "grouped"):
        old, new = before[name], model.get_parameter(f"{name}.weight")
        zero = new == 0
        assert int(zero.sum()) == round(0.3 * old.numel())
        assert torch.equal(new[~zero], old[~zero])
        assert old[zero].abs().max() <= old[~zero].abs().min()
    assert torch.equal(model.classifier.weight, before["classifier"])
    assert list(model.state_dict()) == order
    assert summary.sparsity == pytest.approx(0.3, abs=0.002)
    assert summary.achieved_macs_ratio == 0
    zeros = sum(int((p == 0).sum()) for name, p in model.named_parameters() if name.endswith("weight"))
    assert summary.achieved_params_ratio == pytest.approx(zeros / count(model, 32)[0])


def test_masks_keep_zeros_through_training() -> None:
    torch.manual_seed(0)
    model = Residual()
    _prune(model, "l1_unstructured", 0.5)
    kept = masks(model, "l1_unstructured")
    assert set(kept) == {"stem.weight", "depthwise.weight", "grouped.weight"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
        optimizer.step()
        apply_masks(model, kept)
    assert all(torch.equal(model.get_parameter(name) == 0, zero) for name, zero in kept.items())


@pytest.mark.parametrize(
    ("name", "ratio"), [("resnet18", 0.3), ("mobilenet_v3_small", 0.5), ("alexnet", 0.5), ("alexnet_small", 0.05)]
)
def test_structured_removes_channels_and_survives_the_round_trip(name: str, ratio: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=5, image_size=32)
    params, _, macs = count(model, 32)
    summary = _prune(model, "structured", ratio)
    left_params, _, left_macs = count(model, 32)
    assert summary.achieved_params_ratio == pytest.approx(1 - left_params / params)
    assert summary.achieved_macs_ratio == pytest.approx(1 - left_macs / macs)
    # a layer keeps 1 - ratio of its inputs and of its outputs
    assert summary.achieved_params_ratio == pytest.approx(1 - (1 - ratio) ** 2, abs=0.05)
    widths = [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths if width >= 48)

    save_weights(model, tmp_path / "weights.pt")
    loaded = build_model(name, num_classes=5, image_size=32)
    load_weights(loaded, tmp_path / "weights.pt")
    assert torch.equal(_logits(loaded), _logits(model))
    assert count(loaded, 32) == count(model, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_structured_keeps_the_strong_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        model[0].weight[::2] *= 1e-3
    strong = model[0].weight[1::2].detach().clone()
    _prune(model, "structured", 0.5)
    assert torch.equal(model[0].weight, strong)


def test_users_network_with_groups_and_frozen_parameters(tmp_path: Path) -> None:
    model = Residual().train()
    model.stem.requires_grad_(False)
    _prune(model, "structured", 0.5)
    assert model.stem.out_channels == 16
    assert model.depthwise.groups == 16
    assert model.grouped.groups == 4
    assert model.training
    assert [p.requires_grad for p in model.stem.parameters()] == [False, False]
    assert all(p.requires_grad for p in model.classifier.parameters())
    save_weights(model, tmp_path / "weights.pt")
    loaded = Residual()
    load_weights(loaded, tmp_path / "weights.pt")
    assert torch.equal(_logits(loaded), _logits(model))
    loaded(torch.randn(2, 3, 32, 32)).sum().backward()
    assert loaded.stem.weight.grad is not None


def test_pruned_network_trains() -> None:
    model = build_model("mobilenet_v3_small", num_classes=5, image_size=32)
    _prune(model, "structured", 0.5)
    assert all(p.grad is None for p in model.parameters())
    model.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("method", ["structured", "l1_unstructured"])
def test_nothing_removed_is_an_error(method: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(1024, 5))
    with pytest.raises(ValueError, match=rf"method='{method}' and ratio=0.1 removed nothing"):
        _prune(model, method, 0.1)


@pytest.mark.parametrize(("method", "ratio"), [("magnitude", 0.3), ("structured", 1.0), ("structured", -0.1)])
def test_out_of_range(method: str, ratio: float) -> None:
    with pytest.raises(ValueError, match=f"{method}|ratio={ratio}"):
        _prune(Residual(), method, ratio)


class Embedded(nn.Module):
    """A parameter with two sides: nobody can say which of them are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5)
        self.position = nn.Parameter(torch.zeros(64, 8))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head((self.stem(images).flatten(2).mT + self.position).mean(1))
        return logits


def test_attention_is_refused_before_anything_is_touched() -> None:
    model = Embedded()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="BatchNorm, LayerNorm and Linear layers, but got a model of type Embedded"):
        _prune(model, "structured", 0.3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Scaled(nn.Module):
    """LayerNorm over channels at the end of the shape, and a learned scale outside of any layer, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 4, stride=4), nn.LayerNorm(32)
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)
        self.scale = nn.Parameter(torch.rand(32, 1, 1))
        self.head = nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        y = self.narrow(torch.relu(self.wide(self.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        logits: Tensor = self.head((x + self.scale * y).mean((2, 3)))
        return logits


def test_layer_norms_and_scales_lose_the_channels_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Scaled()
    _prune(model, "structured", 0.5)
    assert (model.stem.out_channels, model.norm.normalized_shape, model.wide.out_features) == (16, (16,), 32)
    assert model.scale.shape == (16, 1, 1)
    save_weights(model, tmp_path / "weights.pt")
    loaded = Scaled()
    load_weights(loaded, tmp_path / "weights.pt")
    assert torch.equal(_logits(loaded), _logits(model))


def test_a_convolution_may_be_the_classifier() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 32), nn.Flatten())
    _prune(model, "structured", 0.5)
    assert model[0].out_channels == 8
    assert model[1].out_channels == 5


def test_architecture_without_output_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 10, 32), nn.Flatten(), nn.MaxPool1d(2))
    with pytest.raises(ValueError, match="no Linear or Conv2d with num_classes=5 outputs"):
        _prune(model, "structured", 0.5)


def test_loading_another_architecture_names_the_tensor(tmp_path: Path) -> None:
    save_weights(nn.Sequential(nn.Conv2d(3, 8, 5)), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights.pt does not fit the model: 0 \(Conv2d\).*\(8, 3, 5, 5\)"):
        load_weights(nn.Sequential(nn.Conv2d(3, 8, 3)), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"1 tensors are on one side only, the first is 0.bias of the file"):
        load_weights(nn.Sequential(nn.Conv2d(3, 8, 5, bias=False)), tmp_path / "weights.pt")


def test_torch_pruning_is_imported_only_when_channels_are_removed() -> None:
    code = "import sys, trainables.stages.pruning.methods; print('torch_pruning' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
