"""Removes channels (`structured`) or zeroes weights (`l1_unstructured`); stores pruned networks without pickles.

A pruned network is its architecture's name plus a plain state_dict: the tensor shapes are the channel plan.
"""

import copy
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.prune import L1Unstructured

from trainables.configs import PRUNING_METHODS
from trainables.stages.models import OUT_OF_MEMORY, check_logits, count, evaluating


@dataclass(frozen=True, kw_only=True)
class PruneSummary:
    """What one pruning did, against the network before it."""

    pruning_method: str
    pruning_ratio: float
    """As asked for: fraction of channels a layer, or of Conv2d weights, in [0, 1)."""
    achieved_params_ratio: float
    """Fraction of all parameters that was removed, or set to zero, 0 to 1."""
    achieved_macs_ratio: float
    """Fraction of multiply-accumulates that was removed, 0 to 1; zeroed weights are still multiplied."""
    sparsity: float
    """Fraction of exact zeros among the Conv2d weights that are left, 0 to 1."""


def prune(
    model: nn.Module, *, method: str, ratio: float, image_size: int, num_classes: int, must_remove: bool = True
) -> PruneSummary:
    """Prunes the model in place and says what was achieved; ratio 0 leaves it bit for bit.

    `structured` removes `ratio` of the channels of every layer, coupled layers together (DepGraph, arXiv:2301.12900),
    those with the smallest group L2 norm first. `l1_unstructured` zeroes the `ratio` smallest |w| of every Conv2d.

    Args:
        must_remove: whether removing nothing at ratio > 0 is an error; a search for a ratio may try too small ones.

    Raises:
        ValueError: if the method is unknown, the ratio is out of [0, 1), nothing was removed at ratio > 0, or the
            network no longer runs or cannot be stored. All of these are deterministic; the model is then unusable.
    """
    if method not in PRUNING_METHODS:
        raise ValueError(f"`method` must be one of {', '.join(PRUNING_METHODS)}, but got {method=}.")
    if not 0 <= ratio < 1:
        raise ValueError(f"`0 <= ratio < 1` must hold, but got {ratio=}.")
    params, nonzero, macs = count(model, image_size)
    if ratio > 0:
        if method == "l1_unstructured":
            _zero_weights(model, ratio)
        else:
            _remove_channels(model, ratio, image_size=image_size, num_classes=num_classes)
    after_params, after_nonzero, after_macs = count(model, image_size)
    removed = params - after_params if method == "structured" else nonzero - after_nonzero
    if ratio > 0 and removed == 0 and must_remove:
        raise ValueError(
            f"Pruning with {method=} and {ratio=} removed nothing: no layer is wide enough for this ratio, or there is "
            "no layer that it applies to; take a larger ratio or the other method."
        )
    return PruneSummary(
        pruning_method=method,
        pruning_ratio=ratio,
        achieved_params_ratio=removed / params,
        achieved_macs_ratio=1 - after_macs / macs if macs else 0.0,
        sparsity=_sparsity(model),
    )


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Where the Conv2d weights are exactly zero, by parameter name; layers without zeros are left out."""
    zeros = {f"{name}.weight": conv.weight.detach() == 0 for name, conv in _convolutions(model).items()}
    return {name: zero for name, zero in zeros.items() if zero.any()}


@torch.no_grad()
def apply_masks(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Sets the masked weights to zero again; to be called after every optimizer step of recovery."""
    for name, zero in masks.items():
        model.get_parameter(name).masked_fill_(zero, 0)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a plain state_dict on the CPU; a reader sees the old file or the whole new one."""
    # clones: a view would drag its whole storage into the file
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads what `save_weights` wrote into a freshly built dense model, whose layers are first resized to fit.

    Raises:
        ValueError: naming the tensor, if the file is of another architecture or a layer cannot be resized.
    """
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    try:
        _load_resized(model, state)
    except ValueError as error:
        raise ValueError(f"{path.name} does not fit the model: {error}") from error


def _convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}


def _sparsity(model: nn.Module) -> float:
    weights = [conv.weight for conv in _convolutions(model).values()]
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else 0.0


@torch.no_grad()
def _zero_weights(model: nn.Module, ratio: float) -> None:
    for conv in _convolutions(model).values():
        # the tensor form of torch.nn.utils.prune: no hooks and masks to make permanent afterwards
        pruned: Tensor = L1Unstructured(amount=ratio).prune(conv.weight)
        conv.weight.copy_(pruned)


def _remove_channels(model: nn.Module, ratio: float, *, image_size: int, num_classes: int) -> None:
    _check_layers(model)
    dense = copy.deepcopy(model)
    image = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
    output = _output_layer(model, image, num_classes)
    # the graph is traced through autograd, which frozen parameters would cut
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    model.requires_grad_(True)
    try:
        _torch_pruning_step(model, image, output, ratio)
    except OUT_OF_MEMORY:
        raise
    except Exception as error:  # whatever the tracer meets in an architecture that it does not know
        kind = type(error).__name__
        raise ValueError(f"Structured pruning cannot handle this architecture ({kind}: {error}).") from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    check_logits(model, name="after structured pruning", num_classes=num_classes, image_size=image_size)
    _check_reload(model, dense, image_size)


def _check_layers(model: nn.Module) -> None:
    """Returns if every parameter sits in a layer whose channels can be removed and resized."""
    for name, layer in model.named_modules():
        sizes = [parameter.numel() for parameter in layer.parameters(recurse=False)]
        if not isinstance(layer, nn.Conv2d | _BatchNorm | nn.Linear) and max(sizes, default=0) > 1:
            raise ValueError(
                "Structured pruning handles Conv2d, BatchNorm and Linear layers, but got "
                f"{name or 'a model'} of type {type(layer).__name__}; take pruning_method='l1_unstructured'."
            )


def _torch_pruning_step(model: nn.Module, image: Tensor, output: nn.Module, ratio: float) -> None:
    import torch_pruning  # only here: machines that only train or load need torch alone

    with evaluating(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            model,
            image,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=False,
            pruning_ratio=ratio,
            ignored_layers=[output],
            round_to=8,
        )
        # its own rounding floors: 16 channels at ratio 0.05 would become 8
        pruner._round_to = lambda removed, width, _: _channels_to_remove(removed, width, ratio)
        pruner.step()
    model.zero_grad(set_to_none=True)


def _channels_to_remove(removed: int, width: int, ratio: float) -> int:
    """Leaves the multiple of 8 nearest to (1 - ratio) x width, of 4 from 16 to 31 channels, of 1 below."""
    if removed < width * ratio - 1e-6:
        return removed  # a grouped convolution: `removed` is of each group, `width` of all
    step = 8 if width >= 32 else 4 if width >= 16 else 1
    keep = max(step, step * math.floor(width * (1 - ratio) / step + 0.5))
    return max(0, width - keep)


def _output_layer(model: nn.Module, image: Tensor, num_classes: int) -> nn.Module:
    """The layer that ran last among those with num_classes outputs."""
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


def _check_reload(model: nn.Module, dense: nn.Module, image_size: int) -> None:
    """Returns if the pruned weights can be put back into the dense architecture, with the same logits."""
    try:
        _load_resized(dense, model.state_dict())
    except ValueError as error:
        raise ValueError(f"This architecture cannot be stored after structured pruning: {error}") from error
    image = torch.rand(2, 3, image_size, image_size, device=next(model.parameters()).device)
    with evaluating(model), evaluating(dense), torch.no_grad():
        expected, got = model(image), dense(image)
    if not torch.allclose(expected, got, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ValueError("This architecture cannot be stored after structured pruning: its logits change on reload.")


def _load_resized(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    if odd := sorted(own.keys() ^ state.keys()):
        where = "model" if odd[0] in own else "file"
        raise ValueError(f"{len(odd)} tensors are on one side only, the first is {odd[0]} of the {where}.")
    for name, layer in model.named_modules():
        prefix = f"{name}." if name else ""
        tensors = dict(layer.named_parameters(recurse=False)) | dict(layer.named_buffers(recurse=False))
        shapes = {key: state[prefix + key].shape for key in tensors if prefix + key in state}
        if any(tensors[key].shape != shape for key, shape in shapes.items()):
            _resize(layer, shapes, where=name or type(layer).__name__)
    model.load_state_dict(state)


def _resize(layer: nn.Module, shapes: dict[str, torch.Size], *, where: str) -> None:
    """Gives the layer empty tensors of these shapes, and attributes that agree with them."""
    shape = shapes.get("weight", torch.Size())
    old: tuple[int, ...] = tuple(getattr(layer, "weight", torch.empty(0)).shape)
    if isinstance(layer, nn.Conv2d) and len(shape) == 4 and shape[2:] == old[2:]:
        if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
            layer.groups = shape[0]
        layer.out_channels, layer.in_channels = shape[0], shape[1] * layer.groups
    elif isinstance(layer, nn.Linear) and len(shape) == 2:
        layer.out_features, layer.in_features = shape
    elif isinstance(layer, _BatchNorm) and len(shape) == 1:
        layer.num_features = shape[0]
    else:
        kind = type(layer).__name__
        raise ValueError(f"{where} ({kind}) has weight shape {old}, which cannot be resized to {tuple(shape)}.")
    for key, new in shapes.items():
        tensor = getattr(layer, key)
        empty = torch.empty(new, dtype=tensor.dtype, device=tensor.device)
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(layer, key, nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty)
