"""Remove whole channels, coupled layers together, by score within each layer or over the whole network."""

import copy
import fnmatch
import itertools
import warnings
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainables.stages.models.attention import find_residual, is_of_tokens
from trainables.stages.models.devices.accelerator import without_timing
from trainables.stages.models.inspection import OUT_OF_MEMORY, describe_error, evaluating, find_output_layer
from trainables.stages.models.torch_private import BatchNorm
from trainables.stages.models.weights import check_reload, is_scale
from trainables.stages.pruning.allocation import (
    Choice,
    Plan,
    allocate,
    allowed_widths,
    rank_together,
    surplus,
    thresholds,
)
from trainables.stages.pruning.criteria import Batches, Group, Score, add_gradients, scorer
from trainables.stages.pruning.equivalence import Removed, Slice, advice, check_equivalence, check_runs
from trainables.stages.pruning.heads import head_groups

HARM_BATCHES = 4  # of images, for `sensitivity`
# Layers with one number per channel for which the graph has rules that do not fit ours.
_UNKNOWN = (nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.PReLU)


class _RefusedError(ValueError):
    """A refusal of our own, which is not wrapped as errors of the tracer are."""


def widths(model: nn.Module) -> dict[str, int]:
    """The number of output channels of every Conv2d and Linear, by name."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return {name: int(layer.weight.shape[0]) for name, layer in layers}


@without_timing()
def remove_channels(
    model: nn.Module,
    ratio: float,
    *,
    criterion: str,
    scope: str,
    image_size: int,
    num_classes: int,
    dense: Plan | None = None,
    plan: Plan | None = None,
    ignore: Sequence[str] = (),
    batches: Batches | None = None,
) -> None:
    """Remove `ratio` of the channels in place: of every layer, or of the network.

    Args:
        dense: widths that `ratio` is a fraction of, by default the model's own; a second cut passes those from before
            the first.
        plan: channels to keep, by layer, instead of `ratio` and `scope`.
        ignore: patterns of the names of layers that keep all channels, those coupled with them included.
        batches: images for the gradients of `taylor` and the harms of `sensitivity`.

    Raises:
        ValueError: if the architecture cannot be pruned, run or stored, or the cut network would not compute what the
            dense one does without these channels; the model may then be unusable.
    """
    _check_layers(model)
    whole = copy.deepcopy(model)  # the dense architecture, into which the store loads pruned weights
    device = next(model.parameters()).device
    image = torch.zeros(1, 3, image_size, image_size, device=device)
    kept = {find_output_layer(model, image, num_classes), *_ignored(model, ignore), *find_residual(model)}
    # torch-pruning traces the graph through autograd, which frozen parameters would interrupt
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    model.requires_grad_(True)
    batches = batches or list  # which gives no images
    if criterion == "taylor":
        add_gradients(model, batches)
    try:
        cutter = _Cutter(model, image, kept, criterion)
        counts = cutter.count_removed(ratio, scope, dense or widths(model), plan, batches)
        removed = cutter.remove(counts)
    except (*OUT_OF_MEMORY, _RefusedError):
        raise
    except Exception as error:  # the tracer raises anything on an architecture it does not know
        raise ValueError(f"Structured pruning cannot handle this architecture ({describe_error(error)}).") from error
    model.zero_grad(set_to_none=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    ignored = [name for name, layer in model.named_modules() if layer in kept]
    lost = dict(zip(cutter.names(), counts, strict=True))

    def cut_alone(name: str) -> tuple[nn.Module, Removed]:
        return _cut_alone(whole, image, ignored, name, lost[name])

    check_runs(model, removed, cut_alone, num_classes=num_classes, image_size=image_size)
    check_equivalence(model, whole, removed, image_size, cut_alone=cut_alone)
    check_reload(model, whole, image_size)


def _cut_alone(
    whole: nn.Module, image: Tensor, ignored: Sequence[str], name: str, count: int
) -> tuple[nn.Module, Removed]:
    """A copy of the network that loses `count` channels of one group and nothing else, those of smallest magnitude."""
    model = copy.deepcopy(whole).requires_grad_(True)
    cutter = _Cutter(model, image, [model.get_submodule(layer) for layer in ignored], "magnitude")
    return model, cutter.remove([count if other == name else 0 for other in cutter.names()])


class _Cutter:
    """The groups of coupled channels of one network, which can be cut together."""

    def __init__(self, model: nn.Module, image: Tensor, kept: Collection[nn.Module], criterion: str) -> None:
        import torch_pruning  # only here: machines that only train or load need torch alone

        self._model = model
        with evaluating(model), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._graph = torch_pruning.DependencyGraph()
            self._graph.build_dependency(model, example_inputs=image, unwrapped_parameters=_scales(model))
            heads = list(head_groups(model, kept, criterion))
            whole = [*kept, *(group.layer for group in heads)]
            self._groups = [*_groups(self._graph, model, whole, scorer(criterion)), *heads]
        self._names = {layer: name for name, layer in model.named_modules()}
        if not self._groups:
            raise _RefusedError(
                "This criterion has a score for no layer that may be cut (bn_scale needs BatchNorm); "
                "take pruning_criterion='magnitude'."
            )

    def names(self) -> list[str]:
        """The name of each group: that of the layer it begins with."""
        return [group.name for group in self._groups]

    def count_removed(self, ratio: float, scope: str, dense: Plan, plan: Plan | None, batches: Batches) -> list[int]:
        """How many channels each group loses; of a grouped convolution, each part."""
        groups = self._groups
        if plan is not None:
            return [max(0, len(group.scores) - plan[group.name] // group.per_score) for group in groups]
        if scope == "global":
            return rank_together(groups, ratio, dense)
        at = thresholds(len(groups))
        removed = [surplus(group, ratio, dense[group.name], one) for group, one in zip(groups, at, strict=True)]
        return self._allocate(removed, dense, batches) if scope == "sensitivity" else removed

    def remove(self, counts: Sequence[int]) -> dict[str, list[Slice]]:
        """Remove the channels with the lowest scores; return what went, in all coupled layers, by group."""
        chosen = [
            (group, count) for group, count in zip(self._groups, counts, strict=True) if self._can_go(group, count)
        ]
        removed = {group.name: self._slices(group, count) for group, count in chosen}
        for group, count in chosen:
            if group.heads is None:
                self._coupled(group, count).prune()
            else:
                group.heads.prune(_lowest(group, count))
        return removed

    def _allocate(self, uniform: Sequence[int], dense: Plan, batches: Batches) -> list[int]:
        """Distribute what `uniform` removes by the harm it does to each layer."""
        images = [pixels for pixels, _ in itertools.islice(batches(), HARM_BATCHES)]
        if not images:
            raise _RefusedError("pruning_scope='sensitivity' needs images to measure harm on, but got 0.")
        choices = [
            Choice(widths=allowed_widths(group, dense[group.name]), cut=partial(self._slices_left, group))
            for group in self._groups
        ]
        most = [len(group.scores) - count for group, count in zip(self._groups, uniform, strict=True)]
        keep = allocate(self._model, choices, images, most)
        return [len(group.scores) - width for group, width in zip(self._groups, keep, strict=True)]

    def _slices_left(self, group: Group, width: int) -> list[Slice]:
        return self._slices(group, len(group.scores) - width)

    def _slices(self, group: Group, count: int) -> list[Slice]:
        if group.heads is not None:
            found: list[Slice] = group.heads.slices(_lowest(group, count))
            return found
        items = [item for item in self._coupled(group, count) if item.dep.target.module in self._names]
        return [
            Slice(
                layer=self._names[item.dep.target.module],
                is_output=self._graph.is_out_channel_pruning_fn(item.dep.handler),
                channels=tuple(int(index) for index in item.idxs),
            )
            for item in items
        ]

    def _can_go(self, group: Group, count: int) -> bool:
        if group.heads is not None:
            return 0 < count < len(group.scores)
        return count > 0 and bool(self._graph.check_pruning_group(self._coupled(group, count)))

    def _coupled(self, group: Group, count: int) -> Any:
        """torch-pruning's group of the `count` channels with the lowest scores of every part."""
        indices = [index + part * len(group.scores) for part in range(group.parts) for index in _lowest(group, count)]
        return self._graph.get_pruning_group(group.layer, group.remove, sorted(indices))


def _lowest(group: Group, count: int) -> list[int]:
    return [int(index) for index in group.scores.argsort()[:count]]


def _groups(graph: Any, model: nn.Module, kept: Collection[nn.Module], score: Score) -> list[Group]:
    """Score every group of coupled channels, those of `kept` layers excepted."""
    names = {layer: name for name, layer in model.named_modules()}
    found: list[Group] = []
    roots = [nn.Conv2d, nn.Linear]
    for group in graph.get_all_groups(ignored_layers=list(kept), root_module_types=roots):
        root = group[0].dep.target.module
        outputs = (item.dep for item in group if graph.is_out_channel_pruning_fn(item.dep.handler))
        if any(dep.target.module in kept for dep in outputs):  # coupled with one that stays whole
            continue
        parts = max((_parts(item.dep.target.module) for item in group), default=1)
        try:
            scores = score(group)
        except IndexError:
            raise _RefusedError(
                "Structured pruning cannot follow this architecture: by its trace, the channels of "
                f"{names[root]} reach weights that do not exist (are they split, padded or joined in another order?); "
                f"{advice(names[root])}."
            ) from None
        if scores is None:
            continue
        if not bool(scores.isfinite().all()):
            raise _RefusedError(f"The scores of layer {names[root]} must be finite, but got nan or inf.")
        # every part must lose the same channels, so their scores are averaged
        scores = scores.detach().cpu().view(parts, -1).mean(dim=0)
        found.append(Group(name=names[root], layer=root, remove=group[0].dep.handler, scores=scores, parts=parts))
    return found


def _ignored(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
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


def _parts(layer: nn.Module) -> int:
    """The number of equal parts that a grouped convolution splits its channels into; 1 for a depthwise one."""
    return layer.groups if isinstance(layer, nn.Conv2d) and 1 < layer.groups != layer.out_channels else 1


def _check_layers(model: nn.Module) -> None:
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


def _scales(model: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Parameters outside known layers with one number per channel, and the dimension of the channels."""
    if is_of_tokens(model):
        return []
    known = (nn.Conv2d, BatchNorm, nn.Linear, nn.LayerNorm)
    own = [p for layer in model.modules() if not isinstance(layer, known) for p in layer.parameters(recurse=False)]
    return [(parameter, int(torch.tensor(parameter.shape).argmax())) for parameter in own if parameter.numel() > 1]
