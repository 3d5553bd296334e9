"""Store and load weights of dense and pruned networks as plain tensors, without pickled objects.

A pruned network is its architecture's name plus a plain state_dict: the tensor shapes are the channel plan.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from trainables.files import replacing
from trainables.stages.models.inspection import evaluating
from trainables.stages.models.torch_private import BatchNorm


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a plain state_dict, on the CPU; a reader sees either the old file or the complete new one."""
    # cloned, because torch.save writes the whole storage of a view
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with replacing(path) as file:
        torch.save(state, file)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load what `save_weights` wrote into a newly built dense model, after resizing its layers to fit.

    Raises:
        ValueError: if the file is of another architecture or a layer cannot be resized; names the tensor or layer.
    """
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    try:
        _load_resized(model, state)
    except ValueError as error:
        raise ValueError(f"{path.name} does not fit the model: {error}") from error


def check_reload(model: nn.Module, dense: nn.Module, image_size: int) -> None:
    """Check that the pruned weights load into the dense architecture and give the same logits there.

    Raises:
        ValueError: if they do not.
    """
    try:
        _load_resized(dense, model.state_dict())
    except ValueError as error:
        raise ValueError(f"This architecture cannot be stored after structured pruning: {error}") from error
    image = torch.rand(2, 3, image_size, image_size, device=next(model.parameters()).device)
    with evaluating(model), evaluating(dense), torch.no_grad():
        expected, got = model(image), dense(image)
    if not torch.allclose(expected, got, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ValueError("This architecture cannot be stored after structured pruning: its logits change on reload.")


def is_scale(shape: Sequence[int]) -> bool:
    """Check whether a parameter of this shape holds one number per channel, or a single number."""
    return sum(side > 1 for side in shape) <= 1


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
    """Give the layer empty tensors of these shapes, and attributes that agree with them."""
    shape = shapes.get("weight", torch.Size())
    old: tuple[int, ...] = tuple(getattr(layer, "weight", torch.empty(0)).shape)
    if isinstance(layer, nn.Conv2d) and len(shape) == 4 and shape[2:] == old[2:]:
        if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
            layer.groups = shape[0]
        layer.out_channels, layer.in_channels = shape[0], shape[1] * layer.groups
    elif isinstance(layer, nn.Linear) and len(shape) == 2:
        layer.out_features, layer.in_features = shape
    elif isinstance(layer, BatchNorm) and len(shape) == 1:
        layer.num_features = shape[0]
    elif isinstance(layer, nn.LayerNorm) and len(shape) == 1:
        layer.normalized_shape = tuple(shape)
    elif not shape and all(is_scale(new) and len(new) == getattr(layer, key).ndim for key, new in shapes.items()):
        pass  # one number per channel, in a module of another kind
    else:
        kind = type(layer).__name__
        raise ValueError(f"{where} ({kind}) has weight shape {old}, which cannot be resized to {tuple(shape)}.")
    for key, new in shapes.items():
        tensor = getattr(layer, key)
        empty = torch.empty(new, dtype=tensor.dtype, device=tensor.device)
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(layer, key, nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty)
