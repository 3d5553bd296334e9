"""Networks that hand channels to other weights than a trace says are refused, with the layer's name; others are cut."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.stages.pruning.channels import widths
from trainables.stages.pruning.methods import prune

SIZE = 8


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
