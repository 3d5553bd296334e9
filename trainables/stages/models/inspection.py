"""Inspect a network: check its logits, count its parameters and MACs, recalibrate its BatchNorm statistics."""

import math
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainables.layout import CHECKOUT
from trainables.stages.models.torch_private import BatchNorm

# Transient, so never turned into a ValueError, which stands for a failure that repeats.
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
# What a user's module may raise while it is imported or runs: SystemExit is no `Exception`.
USERS_ERRORS = (Exception, SystemExit)
# Code that is not the user's: installed libraries, Python's own, and ours.
NOT_THE_USERS = (
    *(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib")),
    CHECKOUT / "trainables",
)


def check_logits(model: nn.Module, *, name: str, num_classes: int, image_size: int) -> None:
    """Check that one image gives logits of shape (1, num_classes); keep the model's mode.

    Raises:
        ValueError: if it does not; says what came out instead, or why nothing did.
    """
    image = torch.zeros(1, 3, image_size, image_size, device=_device(model))
    with evaluating(model), torch.no_grad():
        try:
            logits = model(image)
        except OUT_OF_MEMORY:
            raise
        except USERS_ERRORS as error:  # the user's forward() may raise anything
            reason = describe_error(error)
            raise ValueError(f"Model {name!r} fails on one image of image_size={image_size}: {reason}") from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (1, num_classes):
        raise ValueError(
            f"Model {name!r} must return logits of shape (1, {num_classes}) for an image, but got {shape}."
        )


class Normalised(nn.Module):
    """A network with its normalisation in front: takes pixels in [0, 1]; a call never synchronises with a GPU."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Wrap a network; `mean` and `std` are three numbers each, for R, G and B."""
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits (B, C) of pixels (B, 3, H, W)."""
        logits: Tensor = self.model((image - self.mean) / self.std)
        return logits


def recalibrate_bn(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace BatchNorm's running statistics by their plain average over the batches; change nothing else.

    Without it, torchvision's MobileNetV3 stays at chance for its first epochs: running statistics with momentum 0.01
    still reflect the initial weights. Dropout is off meanwhile; modes and momenta are restored. Without BatchNorm,
    nothing is done and no batch is drawn.

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
                # a cumulative average; momentum=None gives it too, but reads the count from the device at every step
                for layer in layers:
                    layer.momentum = 1 / (seen + 1)
                model(images)
                seen += 1
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    if seen == 0:
        raise ValueError("`batches` must hold at least one batch to recalibrate BatchNorm, but got batches=0.")


def count(model: nn.Module, image_size: int) -> tuple[int, int, int]:
    """Count (num_params, num_nonzero_params, macs); MACs are the multiply-accumulates of one image.

    Only Conv2d (output elements x in_channels / groups x kernel area) and Linear (output elements x in_features) have
    MACs. Biases, normalisation, activations and the products inside attention are not counted.
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
    """Put the model in eval mode; restore every module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def find_output_layer(model: nn.Module, image: Tensor, num_classes: int) -> nn.Module:
    """Find the layer that runs last among those with num_classes outputs: it must keep all of them.

    Raises:
        ValueError: if there is none.
    """
    ran: list[nn.Module] = []

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        if getattr(layer, "out_features", getattr(layer, "out_channels", None)) == num_classes:
            ran.append(layer)

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with evaluating(model), torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    if not ran:
        raise ValueError(f"Structured pruning finds no Linear or Conv2d with {num_classes=} outputs; nothing to keep.")
    return ran[-1]


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def describe_error(error: BaseException) -> str:
    """Describe an error on one line: its type, the first line of its message, and the user's line that raised it."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{text}, in {line}" if (line := _users_line(error)) else text


def _users_line(error: BaseException) -> str | None:
    """The innermost line of the user's own code in a traceback."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(folder) for folder in NOT_THE_USERS):
            return f"line {frame.lineno} of {path}: {frame.line}"
    return None
