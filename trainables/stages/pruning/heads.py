"""Remove whole attention heads: three blocks of outputs of `qkv`, and the inputs of `proj` that read them."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainables.stages.models.attention import find_attentions, fit_heads
from trainables.stages.pruning.criteria import Group
from trainables.stages.pruning.equivalence import Slice

_PARTS = 3  # queries, keys and values


class Heads:
    """The heads of one attention block."""

    def __init__(self, name: str, block: Any) -> None:
        self._name, self._block = name, block

    def scores(self, criterion: str) -> Tensor | None:
        """One importance a head by the criteria of `criteria.scorer`; None if that is of BatchNorm alone."""
        if criterion == "bn_scale":
            return None
        of = _change if criterion == "taylor" else torch.square
        heads, dim = self._block.num_heads, self._block.head_dim
        rows = of(self._block.qkv.weight).view(_PARTS, heads, dim, -1).sum((0, 2, 3))
        found = rows + of(self._block.proj.weight).view(-1, heads, dim).sum((0, 2))
        if criterion == "lamp":
            order = found.argsort(descending=True)
            left = torch.empty_like(found)
            left[order] = found[order] / found[order].cumsum(0)
            return left
        return found / found.mean()

    def slices(self, lowest: Sequence[int]) -> list[Slice]:
        """What goes with these heads."""
        rows, columns = self._indices(lowest)
        return [
            Slice(layer=f"{self._name}.qkv", is_output=True, channels=tuple(rows)),
            Slice(layer=f"{self._name}.proj", is_output=False, channels=tuple(columns)),
        ]

    def prune(self, lowest: Sequence[int]) -> None:
        """Remove these heads in place."""
        import torch_pruning  # only here: machines that only train or load need torch alone

        rows, columns = self._indices(lowest)
        torch_pruning.prune_linear_out_channels(self._block.qkv, rows)
        torch_pruning.prune_linear_in_channels(self._block.proj, columns)
        fit_heads(self._block)

    def _indices(self, lowest: Sequence[int]) -> tuple[list[int], list[int]]:
        dim, width = self._block.head_dim, self._block.attn_dim
        columns = [head * dim + offset for head in sorted(lowest) for offset in range(dim)]
        return [part * width + column for part in range(_PARTS) for column in columns], columns


def _change(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else (weight * weight.grad).abs()


@torch.no_grad()
def head_groups(model: nn.Module, kept: Collection[nn.Module], criterion: str) -> Iterator[Group]:
    """The heads of every attention block whose `qkv` may be cut, as groups of channels."""
    for name, block in find_attentions(model).items():
        heads = Heads(name, block)
        if block.qkv in kept or block.num_heads < 2 or (scores := heads.scores(criterion)) is None:
            continue
        yield Group(
            name=f"{name}.qkv",
            layer=block.qkv,
            remove=None,
            scores=scores.detach().cpu(),
            parts=_PARTS,
            unit=block.head_dim,
            heads=heads,
        )
