"""Find the attention blocks of a transformer, and the networks of tokens whose residual width stays whole."""

from typing import Any

from torch import nn

# Attributes of blocks that mix tokens by Linear layers, in timm's MLP-Mixer and ResMLP.
_TOKEN_MIXERS = ("mlp_tokens", "linear_tokens")
# Parts of an attention block with parameters that its heads share or that are cut with them.
_KNOWN_PARTS = ("qkv", "proj", "q_norm", "k_norm")


def find_attentions(model: nn.Module) -> dict[str, Any]:
    """Find the blocks whose heads can be removed, by name: timm's `Attention` and what is built alike.

    One Linear `qkv` puts out queries, keys and values, each head by head, `proj` reads the heads side by side, and
    nothing else has a parameter for each head, as a table of relative positions would.
    """
    return {name: block for name, block in model.named_modules() if _has_heads(block)}


def _has_heads(block: Any) -> bool:
    if not _is_attention(block) or any(True for _ in block.parameters(recurse=False)):
        return False
    others = (part for name, part in block.named_children() if name not in _KNOWN_PARTS)
    if any(True for part in others for _ in part.parameters()):
        return False
    sizes = [getattr(block, name, None) for name in ("num_heads", "head_dim", "attn_dim")]
    if not all(isinstance(size, int) for size in sizes):
        return False
    width = block.num_heads * block.head_dim
    return bool(block.attn_dim == block.proj.in_features == width and block.qkv.out_features == 3 * width)


def fit_heads(block: Any) -> None:
    """Set the number of heads of an attention block to what its `qkv` puts out."""
    block.num_heads = block.qkv.out_features // (3 * block.head_dim)
    block.attn_dim = block.num_heads * block.head_dim


def find_hidden(model: nn.Module) -> list[nn.Linear]:
    """Find the first Linear of every MLP `fc1`, `fc2`, whose outputs nobody else reads."""
    pairs = ((getattr(block, "fc1", None), getattr(block, "fc2", None)) for block in model.modules())
    return [
        first
        for first, second in pairs
        if isinstance(first, nn.Linear) and isinstance(second, nn.Linear) and first.out_features == second.in_features
    ]


def is_of_tokens(model: nn.Module) -> bool:
    """Whether a network passes tokens from block to block, as transformers and MLP-Mixers do.

    Their width is also that of positions and class tokens, and mixers transpose it: a trace of channels cannot follow.
    """
    return any(
        _is_attention(block) or any(isinstance(getattr(block, name, None), nn.Module) for name in _TOKEN_MIXERS)
        for block in model.modules()
    )


def _is_attention(block: nn.Module) -> bool:
    return all(isinstance(getattr(block, name, None), nn.Linear) for name in ("qkv", "proj"))


def find_residual(model: nn.Module) -> list[nn.Module]:
    """The layers of a network of tokens that stay whole: all but the hidden ones of its MLPs, and its heads."""
    if not is_of_tokens(model):
        return []
    cut = {*find_hidden(model), *(block.qkv for block in find_attentions(model).values())}
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear) and layer not in cut]
