"""Networks that hand channels to other weights than a trace says are refused, with the layer's name; others are cut."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.config.compression import PruneConfig
from trainables.records.stages import DatasetRecord
from trainables.stages.candidate.__main__ import main
from trainables.stages.models.inspection import count
from trainables.stages.pruning.channels import widths
from trainables.stages.pruning.cuts import write_plan
from trainables.stages.pruning.methods import prune

SIZE = 8
IMAGES = DatasetRecord(
    name="digits",
    folder=Path(),
    fingerprint="f" * 64,
    class_names=tuple("abcde"),
    image_size=SIZE,
    num_train=2,
    num_val=2,
    num_test=2,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.second, self.head = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32 * 4, 5)

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(x))

    def pooled(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pooled(self.second(self.middle(self.first(images)))).flatten(1))
        return logits


class ChannelsLast(Plain):
    def pooled(self, x: Tensor) -> Tensor:
        return super().pooled(x).permute(0, 2, 3, 1)


class Flipped(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return x.flip(1)


class Shuffled(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)


class Averaged(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.mean(1, keepdim=True))


class Softmax(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return x.softmax(1)


class Sigmoid(Plain):
    """A removed channel that puts out zero would still give 0.5 behind it; nobody reads that."""

    def middle(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.norm(x))


class LayerNormed(Plain):
    """Its mean and variance are of fewer channels after the cut, which recovery has to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Gated(Plain):
    """The trace gives up on the gate: both halves would have to lose the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Conv2d(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.middle(self.first(images)) * torch.sigmoid(self.mask(images))
        logits: Tensor = self.head(self.pooled(self.second(x)).flatten(1))
        return logits


def cut(model: nn.Module) -> None:
    prune(model, method="structured", ratio=0.25, image_size=SIZE, num_classes=5)


@pytest.mark.parametrize(
    ("network", "layer"),
    [(ChannelsLast, "second"), (Flipped, "first"), (Shuffled, "first"), (Averaged, "first"), (Softmax, "first")],
)
def test_channels_that_reach_other_weights_are_refused(network: type[nn.Module], layer: str) -> None:
    with pytest.raises(ValueError, match=f"the channels of {layer} reach other weights.*prune_ignore='{layer}'"):
        cut(network())


@pytest.mark.parametrize("network", [Plain, Sigmoid, LayerNormed])
def test_what_the_trace_follows_is_cut(network: type[nn.Module]) -> None:
    model = network()
    cut(model)
    assert widths(model) == {"first": 24, "second": 24, "head": 5}


def test_the_advice_helps() -> None:
    model = Flipped()
    prune(model, method="structured", ratio=0.25, image_size=SIZE, num_classes=5, ignore=["first"])
    assert widths(model) == {"first": 32, "second": 24, "head": 5}


NETS = """
from torch import nn

class Flip(nn.Module):
    def forward(self, x):
        return x.flip(1)

def flipped(num_classes):
    body = [nn.Conv2d(3, 32, 3, padding=1), Flip(), nn.Conv2d(32, 32, 3, padding=1), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(32, num_classes))
"""


def test_the_command_refuses_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flipping_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    out, data = str(tmp_path / "runs"), str(tmp_path / "data")
    with pytest.raises(SystemExit) as end:
        main(["--dataset", "digits", "--student-model", "flipping_nets:flipped", "--out", out, "--data-dir", data])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("\n") == 1
    assert "the channels of 0 reach other weights" in said
    assert "--prune-ignore '0'" in said
    assert not (tmp_path / "runs" / "store" / "teacher").exists()


def test_layers_that_cannot_be_cut_are_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Gated()
    dense, before = widths(model), count(model, SIZE)
    cut(model)
    config = PruneConfig(pruning_ratio=0.25)
    write_plan(model, before, config, IMAGES, tmp_path, dense=dense, channel_ratio=0.25)
    assert json.loads((tmp_path / "pruning.json").read_text())["uncut"] == ["first"]
    assert "0.25 of every layer's channels had to go; first kept all" in caplog.text
