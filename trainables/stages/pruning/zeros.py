"""Zero single weights: the smallest of every layer, of the whole network, or two of every four.

Zeros change neither shapes nor the number of multiplications: dense kernels are as fast as before. Only a compressed
file shrinks. 2:4 is the pattern that sparse tensor cores need.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured

GROUP = 4  # the four of 2:4


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


def sparsity(model: nn.Module) -> float:
    """Fraction of exact zeros among the Conv2d weights, 0 to 1."""
    weights = [conv.weight for conv in convolutions(model).values()]
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else 0.0


def _by_four(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return [layer for layer in layers if layer.weight.shape[1] % GROUP == 0]
