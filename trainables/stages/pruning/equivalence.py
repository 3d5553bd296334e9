"""Check that a cut network computes what the dense one computes without the removed channels.

The graph of couplings is traced, and a trace can be wrong: a network that flattens after a `permute`, shuffles channels
or flips them hands each channel to other weights than the trace says. So a copy of the dense network puts out noise in
place of the removed channels, and the weights that read them, by the trace, are zero: if the trace is right, the noise
reaches no logit.
"""

import copy
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.stages.models.inspection import check_logits, evaluating

TOLERANCE = 1e-3  # of the largest logit; single precision differs by 1e-5


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Channels of one layer that go together with those of a group."""

    layer: str
    """The layer's name."""
    is_output: bool
    """Whether the layer puts them out; otherwise it reads them."""
    channels: tuple[int, ...]


Removed = Mapping[str, Sequence[Slice]]
"""What was cut out of a network, by group of coupled layers."""


CutAlone = Callable[[str], tuple[nn.Module, Removed]]
"""Cuts one group out of a copy of the dense network; the copy, and what went."""


def check_equivalence(
    model: nn.Module, dense: nn.Module, removed: Removed, image_size: int, *, cut_alone: CutAlone
) -> None:
    """Check the cut `model` against the `dense` one on random images.

    Args:
        cut_alone: finds a layer whose channels are worth something else where fewer stand before them, though they go
            where the trace says.

    Raises:
        ValueError: if they differ; names the layer whose removed channels are read all the same, or whose cut alone
            makes another network.
    """
    device = next(model.parameters()).device
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    if _same(model, removed, dense, images):
        return
    leaks = (
        name
        for name, parts in removed.items()
        if not _agree(*(_logits(_without(dense, parts, noise=noise), images) for noise in (0.0, 1.0)))
    )
    changed = (name for name in removed if not _same(*cut_alone(name), dense, images))
    name = next(itertools.chain(leaks, changed), None)
    where = f"the channels of {name} reach" if name else "some layer's channels reach"
    raise ValueError(
        f"Structured pruning cannot follow this architecture: {where} other weights than its trace says (are they "
        f"reordered, normalised together, averaged or weighted by position?); {advice(name)}."
    )


def check_runs(model: nn.Module, cut: Collection[str], cut_alone: CutAlone, **sizes: int) -> None:
    """Check that the cut network gives logits.

    Raises:
        ValueError: if it does not; names the first layer among those that were `cut` without whose channels it fails.
    """

    def fault(network: nn.Module) -> str:
        try:
            check_logits(network, name="after structured pruning", **sizes)
        except ValueError as error:
            return str(error).rstrip(".")
        return ""

    if text := fault(model):
        name = next((name for name in cut if fault(cut_alone(name)[0])), None)
        raise ValueError(f"{text}; " + (f"it is the cut of {name}: " if name else "") + f"{advice(name)}.")


def advice(name: str | None) -> str:
    """What helps where the channels of this layer cannot be removed."""
    other = "take pruning_method='l1_unstructured'"
    return f"add it to prune_ignore={name!r}, or {other}" if name else other


def _same(model: nn.Module, removed: Removed, dense: nn.Module, images: Tensor) -> bool:
    every = [part for parts in removed.values() for part in parts]
    return _agree(_logits(model, images), _logits(_without(dense, every, noise=1.0), images))


def _agree(one: Tensor, other: Tensor) -> bool:
    largest = float(other.nan_to_num().abs().max())  # NaN in both is another fault, with a message of its own
    return torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * largest, equal_nan=True)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        logits: Tensor = model(images.clone())
    return logits


def _without(dense: nn.Module, parts: Sequence[Slice], *, noise: float) -> nn.Module:
    """A copy of the dense network that puts out noise instead of the removed channels, and does not read them."""
    model = copy.deepcopy(dense)
    generator = torch.Generator().manual_seed(1)
    layers = dict(model.named_modules())
    for part in parts:
        layer, channels = layers[part.layer], list(part.channels)
        if not part.is_output:
            _ignore_inputs(layer, channels)
        elif isinstance(layer, nn.LayerNorm):
            layer.register_forward_hook(partial(_normalise_rest, channels, noise))
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(_fill(channels, noise, generator))
    return model


@torch.no_grad()
def _ignore_inputs(layer: nn.Module, channels: Sequence[int]) -> None:
    weight = layer.get_parameter("weight")
    # a grouped convolution has weights for the inputs of one group; all groups lose the same ones
    weight[:, sorted({channel % weight.shape[1] for channel in channels})] = 0


def _fill(channels: Sequence[int], noise: float, generator: torch.Generator) -> Callable[..., Tensor]:
    def hook(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        view = output if isinstance(layer, nn.Linear) else output.movedim(1, -1)
        loud = float(output.abs().mean()) + 1
        # all of one sign, so that an average over channels feels it
        levels = noise * loud * (1 + torch.rand(len(channels), generator=generator))
        view[..., list(channels)] = levels.to(output.device)
        return output

    return hook


def _normalise_rest(
    channels: Sequence[int], noise: float, layer: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    """LayerNorm over the channels that are left: with fewer of them, the mean and the variance are others."""
    kept = [channel for channel in range(layer.normalized_shape[-1]) if channel not in set(channels)]
    weight, bias = (None if own is None else own[kept] for own in (layer.weight, layer.bias))
    # torchvision's and timm's LayerNorm2d have their channels in front
    where = 1 if type(layer).__name__.endswith("2d") else -1
    output = torch.full_like(output, noise)
    rest = F.layer_norm(inputs[0].movedim(where, -1)[..., kept], (len(kept),), weight, bias, layer.eps)
    output.movedim(where, -1)[..., kept] = rest
    return output
