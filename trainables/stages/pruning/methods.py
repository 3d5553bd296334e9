"""Remove channels (`structured`) or zero weights (`l1_unstructured`, `l1_global`, `nm_2_4`), and report the result.

Zeros change neither shapes nor the number of multiplications: dense kernels are as fast as before. Only a compressed
file shrinks. 2:4 is the pattern that sparse tensor cores need.

python -m trainables.stages.pruning --check      every model by every criterion at every ratio, as a table
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured

from trainables.config.compression import PRUNING_CRITERIA, PRUNING_METHODS, PRUNING_SCOPES
from trainables.stages.models.inspection import check_logits, count
from trainables.stages.pruning.allocation import Plan
from trainables.stages.pruning.channels import remove_channels
from trainables.stages.pruning.criteria import Batches

GROUP = 4  # the four of 2:4


@dataclass(frozen=True, kw_only=True)
class PruneSummary:
    """What a pruning achieved, compared with the network before it."""

    pruning_method: str
    pruning_ratio: float
    """As asked for: fraction of channels, or of Conv2d weights, in [0, 1)."""
    achieved_params_ratio: float
    """Fraction of all parameters that was removed, or set to zero, 0 to 1."""
    achieved_macs_ratio: float
    """Fraction of multiply-accumulates that was removed, 0 to 1; zeroed weights are still multiplied."""
    sparsity: float
    """Fraction of exact zeros among the Conv2d weights that are left, 0 to 1."""
    num_params: int
    """Parameters left, zeros included."""
    macs: int
    """Multiply-accumulates left, for one image."""


Counts = tuple[int, int, int]
"""num_params, num_nonzero_params and macs, as `models.inspection.count` returns them."""


def prune(
    model: nn.Module,
    *,
    method: str,
    ratio: float,
    image_size: int,
    num_classes: int,
    criterion: str = "magnitude",
    scope: str = "layer",
    dense: Plan | None = None,
    plan: Plan | None = None,
    ignore: Sequence[str] = (),
    batches: Batches | None = None,
    must_remove: bool = True,
) -> PruneSummary:
    """Prune the model in place and return what was achieved; ratio 0 keeps it bit for bit.

    `structured` removes `ratio` of the channels, coupled layers together (DepGraph, arXiv:2301.12900), those with the
    smallest scores first (see `criteria.scorer`). `l1_unstructured` zeroes the `ratio` smallest |w| of every Conv2d,
    `l1_global` of all Conv2d together, `nm_2_4` two of every four inputs of Conv2d and Linear, whatever the ratio.

    Args:
        scope: where `structured` removes channels, see `PruneConfig.pruning_scope`.
        dense: widths that `ratio` is a fraction of; the model's own if None.
        plan: channels to keep by layer, instead of `ratio` and `scope`.
        ignore: patterns of layers that `structured` leaves whole.
        batches: labelled images for `taylor` and `sensitivity`.
        must_remove: whether removing nothing at ratio > 0 is an error; a search for a ratio may try too small ones.

    Raises:
        ValueError: if a name is unknown, the ratio is not in [0, 1), nothing was removed at ratio > 0, or the network
            no longer runs or cannot be stored. All of these are deterministic; the model is then unusable.
    """
    _check(method, ratio, criterion, scope)
    before = count(model, image_size)
    if ratio == 0:
        pass
    elif method == "structured":
        sizes: dict[str, Any] = {"image_size": image_size, "num_classes": num_classes}
        more: dict[str, Any] = {"dense": dense, "plan": plan, "ignore": ignore, "batches": batches}
        remove_channels(model, ratio, criterion=criterion, scope=scope, **sizes, **more)
    else:
        _zero(model, method, ratio)
        check_logits(model, name=f"after {method}", num_classes=num_classes, image_size=image_size)
    summary = compare(model, before, method=method, ratio=ratio, image_size=image_size)
    if must_remove:
        check_removed(summary)
    return summary


def check_removed(summary: PruneSummary) -> None:
    """Check that something was removed if anything was asked for.

    Raises:
        ValueError: if nothing was removed at ratio > 0.
    """
    method, ratio = summary.pruning_method, summary.pruning_ratio
    if ratio > 0 and summary.achieved_params_ratio == 0:
        raise ValueError(
            f"Pruning with {method=} and {ratio=} removed nothing: no layer is wide enough for this ratio, or there is "
            "no layer that it applies to; take a larger ratio or another method."
        )


def compare(model: nn.Module, before: Counts, *, method: str, ratio: float, image_size: int) -> PruneSummary:
    """Compare the pruned model with its counts `before`."""
    params, nonzero, macs = before
    left_params, left_nonzero, left_macs = count(model, image_size)
    # zeroed weights are still parameters: those methods are judged by the nonzero ones
    removed = params - left_params if method == "structured" else nonzero - left_nonzero
    return PruneSummary(
        pruning_method=method,
        pruning_ratio=ratio,
        achieved_params_ratio=removed / params,
        achieved_macs_ratio=1 - left_macs / macs if macs else 0.0,
        sparsity=sparsity(model),
        num_params=left_params,
        macs=left_macs,
    )


def _check(method: str, ratio: float, criterion: str, scope: str) -> None:
    for name, word, known in (
        ("method", method, PRUNING_METHODS),
        ("criterion", criterion, PRUNING_CRITERIA),
        ("scope", scope, PRUNING_SCOPES),
    ):
        if word not in known:
            raise ValueError(f"`{name}` must be one of {', '.join(known)}, but got {name}={word!r}.")
    if not 0 <= ratio < 1:
        raise ValueError(f"`0 <= ratio < 1` must hold, but got {ratio=}.")


def _zero(model: nn.Module, method: str, ratio: float) -> None:
    _check_own_weights(model)
    if method == "nm_2_4":
        zero_two_of_four(model)
    elif method == "l1_global":
        zero_globally(model, ratio)
    else:
        zero_layers(model, ratio)


@torch.no_grad()
def zero_layers(model: nn.Module, ratio: float) -> None:
    """Zero the `ratio` smallest |w| of every Conv2d."""
    for conv in convolutions(model).values():
        # the tensor form of torch.nn.utils.prune: it leaves no hooks or masks to make permanent
        pruned: Tensor = L1Unstructured(amount=ratio).prune(conv.weight)
        conv.weight.copy_(pruned)


@torch.no_grad()
def zero_globally(model: nn.Module, ratio: float) -> None:
    """Zero the `ratio` smallest |w| of all Conv2d weights together, regardless of their layer."""
    convs = list(convolutions(model).values())
    if not convs:
        return
    weights = torch.cat([conv.weight.abs().flatten() for conv in convs])
    order = weights.argsort(stable=True)  # a threshold would zero all weights that equal it
    keep = torch.ones_like(weights, dtype=torch.bool)
    keep[order[: round(ratio * len(weights))]] = False
    for conv, kept in zip(convs, keep.split([conv.weight.numel() for conv in convs]), strict=True):
        conv.weight.mul_(kept.view_as(conv.weight))


@torch.no_grad()
def zero_two_of_four(model: nn.Module) -> None:
    """Zero the two smallest |w| of every four neighbours along the inputs of Conv2d and Linear (arXiv:2104.08378).

    Layers whose inputs (per group) are not a multiple of four are skipped: the first convolution, depthwise ones.
    """
    for layer in _by_four(model):
        weight = layer.weight.movedim(1, -1)  # sparse kernels want the four along the inputs, which they sum over
        fours = weight.reshape(-1, GROUP)
        smallest = fours.abs().argsort(dim=1, stable=True)[:, : GROUP // 2]
        layer.weight.copy_(fours.scatter(1, smallest, 0.0).view(weight.shape).movedim(-1, 1))


def masks(model: nn.Module, method: str) -> dict[str, Tensor]:
    """Where `method` left exact zeros, by parameter name; empty if it removes channels instead."""
    # Only layers that the method touches: zeros elsewhere are chance, and training may change them.
    layers: dict[str, nn.Module] = {}
    if method in ("l1_unstructured", "l1_global"):
        layers = dict(convolutions(model))
    elif method == "nm_2_4":
        by_four = set(_by_four(model))
        layers = {name: layer for name, layer in model.named_modules() if layer in by_four}
    zeros = {f"{name}.weight": model.get_parameter(f"{name}.weight").detach() == 0 for name in layers}
    return {name: zero for name, zero in zeros.items() if zero.any()}


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Every Conv2d by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}


def _check_own_weights(model: nn.Module) -> None:
    """Check that weights are the layers' own: one that is computed anew in every forward pass keeps no zeros.

    Raises:
        ValueError: if one is not.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not isinstance(layer.weight, nn.Parameter):
            raise ValueError(
                f"The weight of {name} is computed from others (weight_norm or another parametrisation), which would "
                "overwrite zeros; remove the parametrisation, or leave pruning out (pruning_ratio=0)."
            )


def sparsity(model: nn.Module) -> float:
    """Fraction of exact zeros among the Conv2d weights, 0 to 1."""
    weights = [conv.weight for conv in convolutions(model).values()]
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else 0.0


def _by_four(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return [layer for layer in layers if layer.weight.shape[1] % GROUP == 0]
