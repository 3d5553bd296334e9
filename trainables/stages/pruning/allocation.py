"""Decide how many channels each layer keeps: an equal share, those of the highest scores, or those that it needs most.

Harm is how far the network's answers move when one layer alone is cut. What several cuts do together is taken for the
sum, as in NetAdapt (arXiv:1804.03230).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.stages.models.inspection import evaluating
from trainables.stages.pruning.criteria import Group
from trainables.stages.pruning.equivalence import Slice

Plan = Mapping[str, int]
"""Output channels of layers by name."""
# Smallest share of a layer's channels that `global` and `sensitivity` keep: without a floor they empty whole layers.
LEAST_GLOBAL = 0.1
GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, are spread evenly however many there are
# Work of reading a weight, in multiplications: of one image on a CPU, Linear layers do 11 GMAC/s, convolutions 45.
READ_WORK = 3
LEVELS = 6  # widths of a layer at which harm is measured; in between it is interpolated


def surplus(group: Group, ratio: float, dense: int, threshold: float) -> int:
    """The number of channels to remove so that (1 - ratio) of the dense width is left."""
    width = len(group.scores)
    if group.unit > 1:  # heads: few, so that rounding all blocks down would remove far more than asked for
        return max(0, width - max(1, math.floor(dense // group.per_score * (1 - ratio) + 1 - threshold)))
    if group.parts > 1:  # of each part
        return max(0, width - int(dense // group.parts * (1 - ratio)))
    return max(0, width - rounded(dense * (1 - ratio), dense, threshold))


def allowed_widths(group: Group, dense: int) -> tuple[int, ...]:
    """The widths that a group may have, in falling order from its own: of each part of a grouped convolution; heads."""
    width, full = len(group.scores), dense // group.per_score
    step = step_of(dense) if group.is_plain else 1
    least = max(step, math.ceil(LEAST_GLOBAL * full))
    return (width, *(left for left in range((width - 1) // step * step, 0, -step) if left >= least))


def thresholds(layers: int) -> list[float]:
    """The fraction of a step from which each layer is rounded up, spread evenly over 0 to 1.

    If layers of one width were all rounded alike, they would all be cut at the same ratio, and nothing between two such
    ratios could be had (ResNet-20 would have no network between 1.95 and 3.38 times less work).
    """
    return [(0.5 + layer * GOLDEN) % 1 for layer in range(layers)]


def rank_together(groups: Sequence[Group], ratio: float, dense: Plan) -> list[int]:
    """Rank the channels of all groups together; return how many of the lowest scores each group loses."""
    total = sum(dense[group.name] // group.per_score for group in groups)
    budget = sum(len(group.scores) for group in groups) - round(total * (1 - ratio))
    owner = torch.cat([torch.full((len(group.scores),), index) for index, group in enumerate(groups)])
    order = torch.cat([group.scores for group in groups]).argsort(stable=True)
    room = [len(group.scores) - math.ceil(LEAST_GLOBAL * dense[group.name] / group.per_score) for group in groups]
    removed = [0] * len(groups)
    for index in owner[order].tolist():
        if budget <= 0:
            break
        if removed[index] < room[index]:
            removed[index] += 1
            budget -= 1
    return [
        max(0, len(group.scores) - rounded(len(group.scores) - count, dense[group.name])) if group.is_plain else count
        for group, count in zip(groups, removed, strict=True)
    ]


def rounded(keep: float, width: int, threshold: float = 0.5) -> int:
    """`keep` rounded to a multiple of 8, of 4 for layers of 16 to 31 channels, of 1 below; at least one step.

    Args:
        threshold: fraction of a step, in [0, 1), from which `keep` is rounded up.
    """
    step = step_of(width)
    return min(width, max(step, step * math.floor(keep / step + 1 - threshold)))


def step_of(width: int) -> int:
    """Channels that are kept or go together in a layer of this width."""
    # kernels process channels in vectors of 4 or 8: odd widths cost the time of the next multiple
    return 8 if width >= 32 else 4 if width >= 16 else 1


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The widths that one group of coupled layers may have."""

    widths: tuple[int, ...]
    """In falling order; the first is what it has now."""
    cut: Callable[[int], Sequence[Slice]]
    """The channels that go, in all coupled layers, if the group keeps so many."""

    @cached_property
    def levels(self) -> list[int]:
        """Up to `LEVELS` narrower widths, evenly spread."""
        narrower = self.widths[1:]
        most = min(LEVELS, len(narrower))
        return [narrower[round((index + 1) / most * len(narrower)) - 1] for index in range(most)]


def allocate(
    model: nn.Module, choices: Sequence[Choice], images: Sequence[Tensor], uniform: Sequence[int]
) -> list[int]:
    """Choose every group's width so that all together need no more work than `uniform`, with the least harm.

    Args:
        images: batches of normalised pixels (B, 3, H, W) on which harm is measured.
        uniform: a width for each group, which tell how much work may be left.
    """
    cost = _Cost(model, choices, images[0][:1])
    most = cost.total_at(uniform)
    own = _answer(model, images)
    curves = [_measure_harm(model, choice, images, own) for choice in choices]
    while cost.total() > most and (steps := list(_steps(choices, curves, cost))):
        group = min(steps)[1]
        narrower = choices[group].widths[choices[group].widths.index(cost.keep[group]) + 1]
        cost.change(group, narrower)
    _give_back(choices, cost, most)
    return cost.keep


def _steps(choices: Sequence[Choice], curves: Sequence["_Curve"], cost: "_Cost") -> Iterator[tuple[float, int]]:
    """For every narrower width of every group, the harm for the work that it saves, and the group."""
    for group, (choice, curve) in enumerate(zip(choices, curves, strict=True)):
        now = cost.keep[group]
        for width in choice.levels:
            if width < now and (saved := cost.saved(group, width)) > 0:
                yield (curve.harm(width) - curve.harm(now)) / saved, group


def _give_back(choices: Sequence[Choice], cost: "_Cost", most: float) -> None:
    """Widen groups again while the work stays within `most`: the last step saved more than it had to."""
    spare = most - cost.total()
    for group, choice in enumerate(choices):
        for wider in reversed(choice.widths[: choice.widths.index(cost.keep[group])]):
            price = -cost.saved(group, wider)
            if price > spare:
                break
            spare -= price
            cost.change(group, wider)


class _Curve:
    """The harm of one group by its width: measured at some, interpolated between them."""

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        self._points = points

    def harm(self, width: int) -> float:
        for (wide, less), (narrow, more) in zip(self._points, self._points[1:], strict=False):
            if width >= narrow:
                return less + (more - less) * (wide - width) / (wide - narrow)
        return self._points[-1][1]


@torch.no_grad()
def _measure_harm(model: nn.Module, choice: Choice, images: Sequence[Tensor], own: Tensor) -> _Curve:
    """Kullback-Leibler divergence, in nats, of the network's answers from its own if this group alone is cut."""
    points = [(choice.widths[0], 0.0)]
    for width in choice.levels:
        with _zeroed(model, [part for part in choice.cut(width) if part.is_output]):
            moved = F.kl_div(_answer(model, images), own, reduction="batchmean", log_target=True)
        # less of a layer never counts as less harm
        points.append((width, max(points[-1][1], float(moved))))
    return _Curve(points)


def _answer(model: nn.Module, images: Sequence[Tensor]) -> Tensor:
    """Log-probabilities of all images, (B, C)."""
    with evaluating(model):
        return torch.cat([F.log_softmax(model(batch), dim=1) for batch in images])


@contextmanager
def _zeroed(model: nn.Module, parts: Sequence[Slice]) -> Iterator[None]:
    """Zero what puts out these channels, and restore it."""
    kept: list[tuple[Tensor, Tensor]] = []
    for part in parts:
        for tensor in _tensors(model.get_submodule(part.layer)):
            kept.append((tensor, tensor.clone()))
            tensor[list(part.channels)] = 0
    yield
    for tensor, before in reversed(kept):
        tensor.copy_(before)


def _tensors(layer: nn.Module) -> list[Tensor]:
    """Weight and bias, whose rows are the layer's output channels."""
    return [getattr(layer, name) for name in ("weight", "bias") if getattr(layer, name, None) is not None]


@dataclass
class _Layer:
    """What one layer costs, and which groups decide its widths."""

    work: float
    """With all channels."""
    output: int | None
    """The group that its outputs belong to; None if they all stay."""
    inputs: dict[int, float]
    """The share of its inputs that each group decides; empty for a depthwise convolution."""
    gone: float = 0.0
    """The share of its inputs that are gone."""


class _Cost:
    """Work of the network for a single image as its groups change: its MACs, and the reading of its weights."""

    def __init__(self, model: nn.Module, choices: Sequence[Choice], image: Tensor) -> None:
        self.keep = [choice.widths[0] for choice in choices]
        """Channels that each group keeps, at first all; `change` alone sets them."""
        self._full = list(self.keep)
        layers = {name: _Layer(work, None, {}) for name, work in _work(model, image).items()}
        self._touched: list[list[_Layer]] = []
        for group, choice in enumerate(choices):
            touched = {}
            for part in choice.cut(0):
                if part.layer in layers:
                    layer = touched[part.layer] = layers[part.layer]
                    _note(layer, model.get_submodule(part.layer), part, group)
            self._touched.append(list(touched.values()))
        self._layers = list(layers.values())

    def total(self) -> float:
        """The work of all layers."""
        return sum(layer.work * self._share(layer.output) * (1 - layer.gone) for layer in self._layers)

    def total_at(self, keep: Sequence[int]) -> float:
        """The work of all layers if the groups kept so many channels."""
        before = list(self.keep)
        self._change_all(keep)
        total = self.total()
        self._change_all(before)
        return total

    def saved(self, group: int, width: int) -> float:
        """Work that goes if one group changes its width; negative if it grows."""
        less = (self.keep[group] - width) / self._full[group]
        return sum(self._saved_in(layer, group, less) for layer in self._touched[group])

    def change(self, group: int, width: int) -> None:
        """Give one group another width."""
        less = (self.keep[group] - width) / self._full[group]
        for layer in self._touched[group]:
            layer.gone += layer.inputs.get(group, 0.0) * less
        self.keep[group] = width

    def _change_all(self, keep: Sequence[int]) -> None:
        for group, width in enumerate(keep):
            self.change(group, width)

    def _saved_in(self, layer: _Layer, group: int, less: float) -> float:
        out, within = self._share(layer.output), layer.inputs.get(group, 0.0) * less
        out_less = less if layer.output == group else 0.0
        return layer.work * (out * (1 - layer.gone) - (out - out_less) * (1 - layer.gone - within))

    def _share(self, group: int | None) -> float:
        """The share of its channels that a group keeps; all where there is none."""
        return 1.0 if group is None else self.keep[group] / self._full[group]


def _note(layer: _Layer, module: nn.Module, part: Slice, group: int) -> None:
    """Note that a group decides a layer's outputs, or a share of its inputs."""
    if part.is_output:
        layer.output = group
    elif isinstance(module, nn.Conv2d):
        layer.inputs[group] = len(part.channels) / module.in_channels
    elif isinstance(module, nn.Linear):
        layer.inputs[group] = len(part.channels) / module.in_features


def _work(model: nn.Module, image: Tensor) -> dict[str, float]:
    """Work of every Conv2d and Linear for one image, by name."""
    found: dict[str, float] = {}

    def note(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        weight = layer.get_parameter("weight")
        found[name] = found.get(name, 0) + output.numel() * weight[0].numel() + READ_WORK * weight.numel()

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(partial(note, name)) for name, layer in layers]
    with evaluating(model), torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return found
