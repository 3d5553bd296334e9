"""Store and load weights of dense and pruned networks as plain tensors; import weights that a user trained elsewhere.

A pruned network is its architecture's name plus a plain state_dict: the tensor shapes are the channel plan.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainables.files import digest_of, replacing, write_text
from trainables.layout import RECORD, WEIGHTS
from trainables.records.encoding import to_json
from trainables.stages.models.attention import find_attentions, fit_heads
from trainables.stages.models.inspection import OUT_OF_MEMORY, evaluating
from trainables.stages.models.torch_private import BatchNorm
from trainables.store.results import Key, Store

# Entries under which training scripts keep the weights of a checkpoint.
NESTED = ("state_dict", "model", "model_state_dict", "net")
# Prefixes that wrappers put before every name: DataParallel, torch.compile, Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.")


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
        expected, got = model(image.clone()), dense(image.clone())  # a forward may write into its input
    if not bool(expected.isfinite().all()):
        raise ValueError("The pruned network's logits are nan or inf; its weights are too large, or it divides by 0.")
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
    attentions = find_attentions(model).values()
    for name, layer in model.named_modules():
        prefix = f"{name}." if name else ""
        tensors = dict(layer.named_parameters(recurse=False)) | dict(layer.named_buffers(recurse=False))
        shapes = {key: state[prefix + key].shape for key in tensors if prefix + key in state}
        if any(tensors[key].shape != shape for key, shape in shapes.items()):
            _resize(layer, shapes, where=name or type(layer).__name__)
    for block in attentions:
        fit_heads(block)
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


def import_weights(path: Path, model: nn.Module, store: Store) -> None:
    """Check that the weights fit `model`, load them into it, and put them into the store for all workers.

    Raises:
        ValueError: if the file holds anything but weights, or weights of another network; it names the tensor.
    """
    state = _strip_prefix(read_weights(path), model)
    expected = model.state_dict()
    for name in expected:
        if name not in state:
            raise ValueError(f"teacher_weights={path}: it lacks {name}; is it of another --teacher-model?")
        if state[name].shape != expected[name].shape:
            has, wants = tuple(state[name].shape), tuple(expected[name].shape)
            raise ValueError(f"teacher_weights={path}: {name} is {has} there, and {wants} in the network.")
    if more := state.keys() - expected.keys():
        raise ValueError(f"teacher_weights={path}: the network has no {min(more)}; is it of another --teacher-model?")
    model.load_state_dict(state)

    def compute(folder: Path) -> None:
        save_weights(model, folder / WEIGHTS)
        write_text(folder / RECORD, to_json({"file": path.name}))

    store.once(_key(digest_of(path, "teacher_weights")), compute)


def find_weights(digest: str, store: Store) -> Path:
    """Find the imported weights in the store.

    Raises:
        ValueError: if they are not there.
    """
    folder = store.find(_key(digest))
    if folder is None:
        raise ValueError(
            f"teacher_weights={digest}: the store holds no such weights; give --teacher-weights FILE again."
        )
    return folder / WEIGHTS


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state_dict, saved by torch or as .safetensors; nothing in the file is executed.

    Raises:
        ValueError: if the file holds anything but named tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError  # only here: machines that only train need torch alone
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"teacher_weights={path}: cannot be read ({error}).") from error
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OUT_OF_MEMORY:
        raise
    except Exception as error:  # a file that torch did not write may raise anything
        raise ValueError(
            f"teacher_weights={path}: holds more than tensors, or is damaged; save model.state_dict() alone."
        ) from error
    for name in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"teacher_weights={path}: holds no state_dict; save model.state_dict() alone.")
    return dict(found)


def _strip_prefix(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Strip the prefix that a wrapper put before all names, unless the model's own names have it too."""
    own = model.state_dict().keys()
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state) and not any(name.startswith(prefix) for name in own):
            return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _key(digest: str) -> Key:
    return Key("weights", digest, 1)
