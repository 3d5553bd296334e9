"""Remove channels (`structured`) or zero weights (`l1_unstructured`, `l1_global`, `nm_2_4`), and report the result.

python -m trainables.stages.pruning --check      every model by every criterion at every ratio, as a table
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from trainables.config.compression import PRUNING_CRITERIA, PRUNING_METHODS, PRUNING_SCOPES
from trainables.stages.models.inspection import check_logits, count
from trainables.stages.pruning.channels import Plan, remove_channels
from trainables.stages.pruning.criteria import Batches
from trainables.stages.pruning.zeros import sparsity, zero_globally, zero_layers, zero_two_of_four


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
        scope: whether `structured` removes `ratio` of every layer or of the network.
        dense: widths that `ratio` is a fraction of; the model's own if None.
        plan: channels to keep by layer, instead of `ratio` and `scope`.
        ignore: patterns of layers that `structured` leaves whole.
        batches: labelled images for `taylor`.
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
    if method == "nm_2_4":
        zero_two_of_four(model)
    elif method == "l1_global":
        zero_globally(model, ratio)
    else:
        zero_layers(model, ratio)
