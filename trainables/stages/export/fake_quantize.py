"""Fake quantisation for training: convolutions and linear layers see the INT8 values that the file will hold.

It is placed where ONNX Runtime places its Q and DQ nodes: on a layer's input per tensor, on its weight per output
channel. A weight's scale follows from its largest |w|. Folding BatchNorm multiplies a channel by one number, which
changes the scale and keeps the integers: what is trained is what is written.
"""

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from trainables.stages.export.scheme import Scheme

MOMENTUM = 0.05  # of the moving averages of a tensor's smallest and largest value; the first batch sets them


class FakeInput(nn.Module):
    """Round a layer's input to 256 values, with straight-through gradients; learn the range while training."""

    low: Tensor
    high: Tensor

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self._scheme = scheme
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def forward(self, values: Tensor) -> Tensor:
        """The values as INT8 holds them."""
        values = values.float()
        if self.training:
            self._observe(values.detach())
        if self._scheme.symmetric:
            scale = torch.maximum(-self.low, self.high).clamp(min=1e-12) / 127
            zero = torch.zeros_like(scale, dtype=torch.int32)  # CUDA's kernel takes int32 only
            return torch.fake_quantize_per_tensor_affine(values, scale, zero, -127, 127)
        scale = (self.high - self.low).clamp(min=1e-12) / 255
        zero = (-self.low / scale).round().clamp(0, 255).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255)

    @torch.no_grad()
    def _observe(self, values: Tensor) -> None:
        low, high = values.aminmax()
        low, high = low.clamp(max=0), high.clamp(min=0)  # zero must be exact, because padding is zero
        share = torch.where(self.high == self.low, 1.0, MOMENTUM)
        self.low.lerp_(low, share)
        self.high.lerp_(high, share)


class FakeWeight(nn.Module):
    """Round a weight to 8 bits (7 with `reduce_range`), with one scale per output channel."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self._most = 64 if scheme.reduce_range else 127

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as INT8 holds it."""
        scale = weight.detach().abs().flatten(1).amax(dim=1).clamp(min=1e-12).float() / self._most
        zero = torch.zeros_like(scale)  # float: PyTorch checks the range of integer zero points, which syncs the GPU
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -self._most, self._most)


def insert(model: nn.Module, scheme: Scheme) -> list[RemovableHandle]:
    """Insert fake quantisation before every Conv2d and Linear and on its weight, after the network's own hooks.

    Returns:
        The handles that `remove` takes.

    Raises:
        ValueError: if there is no such layer.
    """
    layers = list(_layers(model))
    if not layers:
        raise ValueError("Quantisation-aware training needs a Conv2d or Linear layer, but the network has none.")
    handles = []
    for layer in layers:
        device = layer.weight.device
        layer.add_module("fake_input", FakeInput(scheme).to(device))
        handles.append(layer.register_forward_pre_hook(_hook))
        if isinstance(layer.weight, nn.Parameter) or parametrize.is_parametrized(layer, "weight"):
            parametrize.register_parametrization(layer, "weight", FakeWeight(scheme))
        else:  # a hook such as torch.nn.utils.weight_norm recomputes the weight before every forward pass
            handles.append(layer.register_forward_pre_hook(partial(_round_weight, FakeWeight(scheme))))
    return handles


def remove(model: nn.Module, handles: Iterable[RemovableHandle]) -> None:
    """Remove what `insert` added and nothing of the network's own; weights stay as trained, not rounded."""
    for handle in handles:
        handle.remove()
    for layer in list(_layers(model)):
        del layer.fake_input
        if not parametrize.is_parametrized(layer, "weight"):
            continue
        steps = layer.get_submodule("parametrizations.weight")
        assert isinstance(steps, nn.ModuleList), steps
        if isinstance(steps[-1], FakeWeight):
            if len(steps) > 1:  # the network's own parametrisations stay
                del steps[-1]
            else:
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def _round_weight(fake: FakeWeight, layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...]) -> None:
    layer.weight = fake(layer.weight)


def _hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    fake = layer.get_submodule("fake_input")
    return (fake(inputs[0]), *inputs[1:])


def _layers(model: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            yield layer
