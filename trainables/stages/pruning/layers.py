"""Which layers a cut may not touch, which it leaves whole, and which it cannot handle."""

import fnmatch
from collections.abc import Sequence

import torch
from torch import nn

from trainables.stages.models.attention import is_of_tokens
from trainables.stages.models.torch_private import BatchNorm
from trainables.stages.models.weights import is_scale

# Layers with one number per channel for which the graph has rules that do not fit ours.
_UNKNOWN = (nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.PReLU)


def widths(model: nn.Module) -> dict[str, int]:
    """The number of output channels of every Conv2d and Linear, by name."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return {name: int(layer.weight.shape[0]) for name, layer in layers}


def ignored_layers(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """The layers whose names fit a pattern."""
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    return [layer for name, layer in layers if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def check_ignored(models: Sequence[nn.Module], patterns: Sequence[str]) -> None:
    """Check that every pattern of `prune_ignore` fits a layer of one of the models.

    Raises:
        ValueError: if one does not.
    """
    names = [name for model in models for name in widths(model)]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                f"prune_ignore={pattern!r} fits no Conv2d or Linear; the first are {', '.join(names[:5])}."
            )


def check_layers(model: nn.Module) -> None:
    """Check that every parameter can lose channels: it belongs to a known layer, or has one number per channel.

    In a network of tokens, only Linear layers lose any.

    Raises:
        ValueError: if one cannot.
    """
    if is_of_tokens(model):
        return
    for name, layer in model.named_modules():
        sizes = [parameter.shape for parameter in layer.parameters(recurse=False)]
        fit = all(map(is_scale, sizes)) and not (
            isinstance(layer, _UNKNOWN) and any(size.numel() > 1 for size in sizes)
        )
        if not isinstance(layer, nn.Conv2d | BatchNorm | nn.Linear | nn.LayerNorm) and not fit:
            raise ValueError(
                "Structured pruning handles Conv2d, BatchNorm, LayerNorm and Linear layers, but got "
                f"{name or 'a model'} of type {type(layer).__name__}; take pruning_method='l1_unstructured'."
            )


def scales(model: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Parameters outside known layers with one number per channel, and the dimension of the channels."""
    if is_of_tokens(model):
        return []
    known = (nn.Conv2d, BatchNorm, nn.Linear, nn.LayerNorm)
    own = [p for layer in model.modules() if not isinstance(layer, known) for p in layer.parameters(recurse=False)]
    return [(parameter, int(torch.tensor(parameter.shape).argmax())) for parameter in own if parameter.numel() > 1]
