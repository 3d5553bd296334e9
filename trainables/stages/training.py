"""The training loop of every stage: one epoch at a time, resumable after each, CPU or GPU.

Shape letters: B batch, C classes.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.configs import AugmentConfig, TrainingConfig
from trainables.records import EpochRecord, epochs_from_json
from trainables.stages import augment as views
from trainables.stages.models import recalibrate_bn
from trainables.stages.tensors import Images

WARMUP_SHARE = 0.05
EVAL_BATCH = 512
RECALIBRATION_IMAGES = 2048


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's augmented images and what is known about them."""

    index: Tensor
    """Samples of the training split, int64 [B]."""
    view: int
    """Which of the samples' augmented views; (view, index) names the pixels exactly."""
    pixels: Tensor
    """float32 [B, 3, H, W] in [0, 1]."""
    target: Tensor
    """Class indices [B], or probabilities [B, C] under Mixup."""


Turn = Callable[[], AbstractContextManager[None]]
"""Entered around a step's work on the device; blocks while somebody measures there."""


class Lesson(Protocol):
    """What a stage is taught by."""

    def open(self, view: int, turn: Turn) -> None:
        """Have everything at hand that the view's batches need."""

    def __call__(self, logits_BC: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar in nats."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One training stage in numbers."""

    stage: str
    """`teacher`, `student` or `recovery`."""
    epochs: int
    learning_rate: float
    """Peak; 5 % linear warm-up, then a cosine to 0."""
    training: TrainingConfig
    augment: AugmentConfig
    first_view: int = 0
    """Index of the first epoch's augmented views; recovery goes on where the student stopped."""


def seed_for(seed: int, *parts: object) -> int:
    """A seed in [0, 2^63) that depends on every part: the same stage and epoch draw the same numbers again."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def train(
    model: nn.Module,
    loop: Loop,
    images: Images,
    lesson: Lesson,
    folder: Path,
    *,
    after_step: Callable[[], None] | None = None,
    turn: Turn = nullcontext,
) -> Generator[EpochRecord, None, tuple[EpochRecord, ...]]:
    """Train `model` in place, yield each epoch's record once its state is safely in `folder`, return all of them.

    A second call with the same folder goes on after the last epoch that was stored and yields the rest: on one
    device 2 epochs, a kill and 2 epochs give the weights of 4, bit for bit.

    Args:
        after_step: called after every optimiser step (pruning masks).
        turn: entered around every step.
    """
    device = images.mean.device
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=loop.learning_rate, weight_decay=loop.training.weight_decay)
    curve = _resume(model, optimizer, folder / "state.pt", device)
    for epoch in range(len(curve) + 1, loop.epochs + 1):
        started = time.perf_counter()
        torch.manual_seed(seed_for(loop.training.seed, loop.stage, epoch))
        train_loss, train_accuracy = _epoch(model, optimizer, loop, images, lesson, epoch, after_step, turn)
        with turn():
            recalibrate(model, loop, images)
            val_loss, val_accuracy = evaluate(model, images)
        record = EpochRecord(
            stage=loop.stage,
            epoch=epoch,
            epochs=loop.epochs,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - started,
        )
        curve.append(record)
        _save(model, optimizer, curve, folder / "state.pt")
        yield record
    return tuple(curve)


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loop: Loop,
    images: Images,
    lesson: Lesson,
    epoch: int,
    after_step: Callable[[], None] | None,
    turn: Turn,
) -> tuple[float, float]:
    """One pass over the training split; mean loss in nats and accuracy on the augmented images."""
    view = loop.first_view + epoch - 1
    batches = _batches(loop, images, epoch)
    seen = _views(loop, images, view)
    lesson.open(view, turn)
    total_loss = torch.zeros((), device=images.mean.device)
    correct = torch.zeros((), device=images.mean.device)
    count = 0
    model.train()
    for step, index in enumerate(batches):
        with turn():
            rate = learning_rate(loop, (epoch - 1 + (step + 1) / len(batches)) / loop.epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            pixels = seen.batch(images.train_images, index)
            batch = Batch(index=index, view=view, pixels=pixels, target=_target(seen, index, images))
            logits_BC = model(images.normalise(pixels))
            value = lesson(logits_BC, batch)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            if after_step is not None:
                after_step()
            total_loss += value.detach() * len(index)
            correct += (logits_BC.argmax(1) == images.train_labels[index]).sum()
            count += len(index)
    mean_loss = total_loss.item() / count
    if not math.isfinite(mean_loss):
        raise ValueError(
            f"training diverged: {loop.stage} loss is {mean_loss} in epoch {epoch} at learning rate"
            f" {loop.learning_rate}."
        )
    return mean_loss, correct.item() / count


def learning_rate(loop: Loop, progress: float) -> float:
    """Linear warm-up over the first 5 % of the stage, then a cosine to 0; progress in (0, 1]."""
    if progress < WARMUP_SHARE:
        return loop.learning_rate * progress / WARMUP_SHARE
    return loop.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))


def recalibrate(model: nn.Module, loop: Loop, images: Images) -> None:
    """Estimate BatchNorm statistics anew from the first views of some training images.

    Short runs leave torchvision's running averages near their start, which reads as chance accuracy.
    """
    count = min(RECALIBRATION_IMAGES, len(images.train_labels))
    seen = _views(loop, images, loop.first_view)
    index = torch.arange(count, device=images.mean.device)
    parts = [part for part in index.split(loop.training.batch_size) if len(part) > 1]
    with torch.no_grad():
        recalibrate_bn(model, (images.normalise(seen.batch(images.train_images, part)) for part in parts))


@torch.no_grad()
def evaluate(model: nn.Module, images: Images) -> tuple[float, float]:
    """Cross-entropy in nats and accuracy (0 to 1) on the validation split, in evaluation mode."""
    model.eval()
    total = torch.zeros((), device=images.mean.device)
    correct = torch.zeros((), device=images.mean.device)
    for pixels, labels in zip(images.val_images.split(EVAL_BATCH), images.val_labels.split(EVAL_BATCH), strict=True):
        logits_BC = model(images.normalise(pixels.float() / 255))
        total += F.cross_entropy(logits_BC.float(), labels, reduction="sum")
        correct += (logits_BC.argmax(1) == labels).sum()
    count = len(images.val_labels)
    return total.item() / count, correct.item() / count


def _views(loop: Loop, images: Images, view: int) -> views.Views:
    return views.Views(
        loop.augment, num_samples=len(images.train_labels), epoch=view, image_size=images.train_images.shape[-1]
    )


def _batches(loop: Loop, images: Images, epoch: int) -> list[Tensor]:
    order = views.batch_order(seed_for(loop.training.seed, loop.stage), epoch, len(images.train_labels))
    parts = order.to(images.mean.device).split(loop.training.batch_size)
    return [part for part in parts if len(part) > 1]  # BatchNorm cannot train on a single image


def _target(seen: views.Views, index: Tensor, images: Images) -> Tensor:
    labels = images.train_labels[index]
    if seen.config.mixup_alpha is None:
        return labels
    partner, share = seen.partners(index)
    one_hot = F.one_hot(labels, images.num_classes).float()
    other = F.one_hot(images.train_labels[partner], images.num_classes).float()
    return share[:, None] * one_hot + (1 - share[:, None]) * other


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, curve: list[EpochRecord], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    rows = json.dumps([asdict(record) for record in curve])
    with temporary.open("wb") as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "curve": rows}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path, device: torch.device) -> list[EpochRecord]:
    if not path.exists():
        return []
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError):  # damaged by a power loss: begin again
        return []
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return list(epochs_from_json(json.loads(state["curve"])))
