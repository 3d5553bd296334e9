"""Score coupled channels by magnitude, LAMP, Taylor expansion or BatchNorm scale, to decide which to remove."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.stages.models.inspection import evaluating
from trainables.stages.models.torch_private import BatchNorm

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Labelled training images: normalised pixels (B, 3, H, W) and class indices (B)."""
Score = Callable[[Any], Tensor | None]
"""One importance per channel of a torch-pruning group; None if the criterion does not apply to the group."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The channels of one layer, and the coupled channels of other layers that must go with them."""

    name: str
    """Name of the layer that defines the group's width."""
    layer: nn.Module
    remove: Any
    """torch-pruning's function that takes channels out of the layer."""
    scores: Tensor
    """One per channel; for a grouped convolution, one per channel of a convolution group; one per attention head."""
    parts: int
    """Groups of the convolution; usually 1."""
    unit: int = 1
    """Neighbouring channels that go with one score: the size of an attention head; usually 1."""
    heads: Any = None
    """What removes attention heads, if the group is made of these; no trace says how they go together."""

    @property
    def per_score(self) -> int:
        """Channels of the layer that go with one score."""
        return self.parts * self.unit

    @property
    def is_plain(self) -> bool:
        """Whether a score is of one channel, so that widths are multiples of 4 or 8."""
        return self.per_score == 1


def scorer(criterion: str) -> Score:
    """The function that scores a group of coupled channels.

    - `magnitude`: mean squared weight over all coupled layers, relative to the group's mean (DepGraph,
      arXiv:2301.12900);
    - `lamp`: magnitude over the sum of what would be left of the group (LAMP, arXiv:2010.07611), which makes layers
      comparable;
    - `taylor`: the first-order change of the loss without the channel (Molchanov et al., CVPR 2019): of the gates after
      the group's BatchNorms, |gamma dL/dgamma + beta dL/dbeta|, or without any the sum of |w dL/dw|;
    - `bn_scale`: |gamma| of the BatchNorms in the group (arXiv:1708.06519); None without one.
    """
    import torch_pruning  # only here: machines that only train or load need torch alone

    known = torch_pruning.importance
    score: Score = {
        "magnitude": lambda: known.GroupMagnitudeImportance(p=2),
        "lamp": lambda: known.LAMPImportance(p=2),
        "taylor": lambda: _Taylor(known.GroupTaylorImportance()),
        "bn_scale": lambda: known.BNScaleImportance(),
    }[criterion]()
    return score


class _Taylor:
    """First-order change of the loss: torch-pruning's own takes weights alone."""

    def __init__(self, of_weights: Score) -> None:
        self._of_weights = of_weights

    def __call__(self, group: Any) -> Tensor | None:
        scores = self._of_weights(group)
        if scores is None:
            return None
        gates = torch.zeros_like(scores)
        found = False
        for item in group:
            layer = item.dep.target.module
            if isinstance(layer, BatchNorm) and layer.affine:
                found = True
                change = layer.weight * _gradient(layer.weight) + layer.bias * _gradient(layer.bias)
                gates.index_add_(0, torch.tensor(item.root_idxs).to(gates.device), change.detach()[item.idxs].abs())
        return gates if found else scores


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def add_gradients(model: nn.Module, batches: Batches) -> None:
    """Compute the gradient of the mean cross-entropy over `batches` into `.grad`; keep running statistics unchanged.

    Raises:
        ValueError: if there is no batch, or a gradient is not finite.
    """
    model.zero_grad(set_to_none=True)
    seen = 0
    with evaluating(model), torch.enable_grad():
        for pixels, labels in batches():
            F.cross_entropy(model(pixels), labels, reduction="sum").backward()
            seen += len(labels)
    if seen == 0:
        raise ValueError("pruning_criterion='taylor' needs labelled images for its gradients, but got 0.")
    # The sum over all images divided once: a mean of batch means would overweight a last, smaller batch.
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for gradient in gradients:
        gradient.div_(seen)
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        raise ValueError("pruning_criterion='taylor' needs finite gradients, but got nan or inf.")
