"""What the rival arms of efficacy.py share: images, networks, and one training loop against a budget of CPU-seconds.

Nothing here comes from the product but `build_model`, which constructs the teacher's architecture. Letters: B images,
C colours or classes, H W pixels, N images of a split.
"""

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.stages.models.build import build_model

PAD = 4
"""Pixels by which a crop may shift."""
BATCH = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Images of train, val or test."""

    pixels: Tensor
    """uint8, NCHW."""
    labels: Tensor
    """int64, N."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; the rate follows the share of the budget that is spent."""

    optimizer: str = "adamw"
    """`adamw`, or `sgd` with momentum 0.9."""
    rate: float = 1e-3
    """Peak."""
    decay: float = 0.01
    schedule: str = "one_cycle"
    """`one_cycle` (linear warm-up, cosine to 0), `steps` (a tenth at 60 % and at 80 %) or `constant`."""
    alpha: float = 0.0
    """Weight of the soft, teacher term, 0 to 1."""
    temperature: float = 4.0
    dropout: float | None = None
    """Probability in the network's dropout layers; None keeps theirs."""


def read(folder: Path) -> Split:
    """The images of a folder CLASS/*, in order of class and name."""
    classes = sorted(path.name for path in folder.iterdir())
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files])
    return Split(
        pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels=torch.tensor([y for _, y in files])
    )


class Scale(nn.Module):
    """(x - mean) / std of pixels in [0, 1]: the first layer of every file, as of the product's."""

    def __init__(self, train: Split) -> None:
        super().__init__()
        pixels = train.pixels.double().flatten(2) / 255
        self.register_buffer("mean", pixels.mean((0, 2)).float()[:, None, None])
        self.register_buffer("std", pixels.permute(1, 0, 2).flatten(1).std(1).float()[:, None, None])

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return (pixels_BCHW - self.mean) / self.std


def network(model: str, classes: int, side: int) -> nn.Module:
    """The teacher's architecture with random weights."""
    return build_model(model, num_classes=classes, image_size=side)


def trained(folder: Path) -> nn.Module:
    """The teacher of a seed's folder."""
    facts = json.loads((folder / "teacher.json").read_text())
    teacher = network(facts["model"], facts["classes"], facts["side"])
    teacher.load_state_dict(torch.load(folder / "teacher.pt", weights_only=True))
    return teacher.eval()


def narrowed(dense: nn.Module, width: float, side: int) -> nn.Module:
    """The architecture with `width` of the channels in every layer but the last, in multiples of 4, random weights."""
    slim = copy.deepcopy(dense)
    if width < 1:
        pruned(slim, 1 - width, side, tp.importance.RandomImportance(), round_to=4)
    for layer in slim.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return slim


def pruned(model: nn.Module, ratio: float, side: int, importance: Any, **how: Any) -> None:
    """Remove channels, in place, with a pruner of torch-pruning in one step."""
    pruner = tp.pruner.BasePruner(
        model,
        torch.zeros(1, 3, side, side),
        importance=importance,
        pruning_ratio=ratio,
        ignored_layers=[last(model)],
        **how,
    )
    pruner.step()


def last(model: nn.Module) -> nn.Module:
    """The classifier's last layer, which nobody prunes."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]


def views(train: Split, scale: nn.Module, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches (normalised pixels, labels, index into `soft_logits`): padded crops, half of them mirrored."""
    generator = torch.Generator().manual_seed(seed)
    padded = F.pad(train.pixels, (PAD,) * 4)
    count, colours, side, _ = train.pixels.shape
    steps, batch = torch.arange(side), min(BATCH, count)
    while True:
        for index in torch.randperm(count, generator=generator)[: count // batch * batch].split(batch):
            up, left = torch.randint(2 * PAD + 1, (2, batch, 1), generator=generator)
            mirrored = torch.rand(batch, generator=generator) < 0.5
            rows, columns = up + steps, left + torch.where(mirrored[:, None], steps.flip(0), steps)
            crop = padded[
                index[:, None, None, None], torch.arange(colours)[:, None, None],
                rows[:, None, :, None], columns[:, None, None, :],
            ]  # fmt: skip
            yield scale(crop / 255), train.labels[index], index + count * mirrored


@torch.no_grad()
def soft_logits(teacher: nn.Module, scale: nn.Module, train: Split) -> Tensor:
    """The teacher's logits, 2N x C: of the images as they are, then mirrored; crops are taught these, too."""
    teacher.eval()
    both = (train.pixels, train.pixels.flip(3))
    return torch.cat([teacher(scale(part / 255)) for pixels in both for part in pixels.split(500)])


@torch.no_grad()
def accuracy(model: nn.Module, scale: nn.Module, split: Split) -> float:
    """Share of images that the network gets right."""
    model.eval()
    right = [
        (model(scale(pixels / 255)).argmax(1) == labels).sum().item()
        for pixels, labels in zip(split.pixels.split(500), split.labels.split(500), strict=True)
    ]
    return sum(right) / len(split.labels)


def loss(recipe: Recipe, logits_BC: Tensor, labels: Tensor, soft_BC: Tensor | None) -> Tensor:
    """(1 - alpha) cross-entropy + alpha T^2 KL(teacher || student), arXiv:1503.02531."""
    hard = F.cross_entropy(logits_BC, labels)
    if soft_BC is None or recipe.alpha == 0:
        return hard
    heat = recipe.temperature
    student, teacher = F.log_softmax(logits_BC / heat, 1), F.log_softmax(soft_BC / heat, 1)
    soft = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    return (1 - recipe.alpha) * hard + recipe.alpha * heat**2 * soft


def rate_at(recipe: Recipe, spent: float) -> float:
    """The learning rate after a share of the budget."""
    if recipe.schedule == "constant":
        return recipe.rate
    if recipe.schedule == "steps":
        return recipe.rate * 0.1 ** ((spent >= 0.6) + (spent >= 0.8))
    warm = 0.15
    if spent < warm:
        return recipe.rate * max(spent / warm, 0.01)
    return recipe.rate * (1 + math.cos(math.pi * (spent - warm) / (1 - warm))) / 2


def fit(
    model: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor, Tensor]],
    recipe: Recipe,
    spent: Callable[[int], float],
    soft: Tensor | None = None,
) -> int:
    """Train until `spent(steps)`, a share of the budget, is 1; returns the steps."""
    for layer in model.modules():
        if isinstance(layer, nn.Dropout) and recipe.dropout is not None:
            layer.p = recipe.dropout
    kinds: dict[str, Any] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    more: dict[str, Any] = {"momentum": 0.9} if recipe.optimizer == "sgd" else {}
    optimizer = kinds[recipe.optimizer](model.parameters(), lr=recipe.rate, weight_decay=recipe.decay, **more)
    model.train()
    steps = 0
    while (share := spent(steps)) < 1:
        pixels, labels, index = next(batches)
        optimizer.param_groups[0]["lr"] = rate_at(recipe, share)
        optimizer.zero_grad()
        loss(recipe, model(pixels), labels, None if soft is None else soft[index]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        steps += 1
    model.eval()
    return steps


def of_cpu(seconds: float) -> Callable[[int], float]:
    """Spent share of a budget of CPU-seconds of this process, from now."""
    started = time.process_time()
    return lambda _: (time.process_time() - started) / max(seconds, 1e-9)


def of_steps(total: int) -> Callable[[int], float]:
    """Spent share of a number of steps."""
    return lambda steps: steps / max(total, 1)
