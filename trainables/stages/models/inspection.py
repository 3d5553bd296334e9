"""A network looked at: its logits checked, its size counted, its BatchNorm statistics renewed."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainables.stages.models.torch_private import BatchNorm

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
"""Transient: never turned into a ValueError, which stands for a failure that will come again."""


def check_logits(model: nn.Module, *, name: str, num_classes: int, image_size: int) -> None:
    """Returns if one image gives logits of shape (1, num_classes); the model's mode is kept.

    Raises:
        ValueError: with what came out instead, or why nothing did.
    """
    image = torch.zeros(1, 3, image_size, image_size, device=_device(model))
    with evaluating(model), torch.no_grad():
        try:
            logits = model(image)
        except OUT_OF_MEMORY:
            raise
        except Exception as error:  # the user's forward() may raise anything
            reason = _first_line(error)
            raise ValueError(f"Model {name!r} fails on one image of image_size={image_size}: {reason}") from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (1, num_classes):
        raise ValueError(
            f"Model {name!r} must return logits of shape (1, {num_classes}) for an image, but got {shape}."
        )


class Normalised(nn.Module):
    """A network behind its normalisation: pixels in [0, 1] to logits; no call of it waits for a GPU."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std`: three numbers each, channels R G B."""
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, C)."""
        logits: Tensor = self.model((image - self.mean) / self.std)
        return logits


def recalibrate_bn(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces the running statistics of BatchNorm by their plain average over the batches; nothing else changes.

    Torchvision's MobileNetV3 stays at chance for its first epochs without it: running statistics with momentum 0.01
    still remember their start, while the weights have moved on. Dropout is off meanwhile; modes and momenta are
    restored. Does nothing (and draws no batch) without BatchNorm.

    Raises:
        ValueError: if there is no batch.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BatchNorm) and layer.track_running_stats]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    seen = 0
    with evaluating(model), torch.no_grad():
        try:
            for images in batches:
                if seen == 0:
                    for layer in layers:
                        layer.reset_running_stats()
                        layer.train()
                for layer in layers:  # the cumulative average; with None PyTorch asks the device for the count
                    layer.momentum = 1 / (seen + 1)
                model(images)
                seen += 1
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    if seen == 0:
        raise ValueError("`batches` must hold at least one batch to recalibrate BatchNorm, but got batches=0.")


def count(model: nn.Module, image_size: int) -> tuple[int, int, int]:
    """Returns (num_params, num_nonzero_params, macs): elements of all parameters, multiply-accumulates of one image.

    MACs are those of Conv2d and Linear modules: out elements x in_channels / groups x kernel area, and out elements x
    in_features. Biases, normalisation, activations and the products inside attention are not counted.
    """
    macs = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(layer, nn.Conv2d):
            macs += output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
        elif isinstance(layer, nn.Linear):
            macs += output.numel() * layer.in_features

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, 3, image_size, image_size, device=_device(model)))
    finally:
        for hook in hooks:
            hook.remove()
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(int(torch.count_nonzero(p)) for p in parameters), macs


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards every module has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
