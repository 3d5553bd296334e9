"""The training loop of every stage: one epoch at a time, resumable after each, on CPU or GPU.

Shape letters: B batch, C classes.
"""

import hashlib
import math
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.config.candidate import AugmentConfig
from trainables.config.training import TrainingConfig
from trainables.layout import STATE
from trainables.records.stages import EpochRecord
from trainables.stages.data.augment import draws, views
from trainables.stages.data.on_device import Images
from trainables.stages.data.splits import sample_evenly
from trainables.stages.data.streaming import Streamed
from trainables.stages.models import placement
from trainables.stages.models.inspection import recalibrate_bn
from trainables.stages.models.placement import autocast, layout, move, set_up_kernels
from trainables.stages.training import checkpoints

WARMUP_SHARE, MOMENTUM = 0.05, 0.9  # of the stage's steps; of Nesterov SGD
EVAL_BATCH = 512
RECALIBRATION_IMAGES = 2048


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's augmented images and what is known about them."""

    index: Tensor
    """Samples of the training split, int64 [B]."""
    view: int
    """Number of the augmented view; (view, index) determines the pixels exactly."""
    pixels: Tensor
    """float32 [B, 3, H, W] in [0, 1]."""
    target: Tensor
    """Class indices [B], or probabilities [B, C] under Mixup; means nothing where there is no label."""
    labelled: Tensor | None = None
    """Which samples have a label, bool [B]; None if all have."""


Turn = Callable[[], AbstractContextManager[None]]
"""A context entered around a step's work on the device; blocks while a measurement runs there."""


class Lesson(Protocol):
    """The loss that a stage trains with."""

    def open(self, view: int, turn: Turn) -> None:
        """Prepare everything that the view's batches need."""

    def __call__(self, logits_BC: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar in nats."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The settings of one training stage."""

    stage: str
    """`teacher`, `student` or `recovery`."""
    epochs: int
    learning_rate: float
    """Peak rate, after 5 % linear warm-up and before a cosine to 0."""
    training: TrainingConfig
    anneal: bool = True
    """Whether the rate falls to 0; else it stays at its peak after the warm-up."""
    optimizer: str = "adamw"
    """One of `OPTIMIZERS`; its weight decay is that of `training`."""
    augment: AugmentConfig
    first_view: int = 0
    """Number of the first epoch's augmented view; recovery continues where the student stopped."""


def seed_for(seed: int, *parts: object) -> int:
    """A seed in [0, 2^63) that depends on every part, so that a resumed epoch draws the same numbers again."""
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
    graphs: bool = False,
) -> Generator[EpochRecord, None, tuple[EpochRecord, ...]]:
    """Train `model` in place; yield each epoch's record once its state is safely in `folder`; return all records.

    A second call with the same folder continues after the last stored epoch and yields the rest. On one device,
    2 epochs, a kill and 2 more epochs give the weights of 4: bit for bit on a CPU, and on a GPU with `deterministic`.

    Args:
        after_step: called after every optimiser step (pruning masks).
        turn: entered around every step.
        graphs: replay the network's kernels where that can be; see `placement.capture_model`.
    """
    trainer = Trainer(model, loop, images, lesson, after_step=after_step, turn=turn, graphs=graphs)
    curve = checkpoints.resume(model, trainer.optimizer, folder / STATE, images.mean.device)
    for epoch in range(len(curve) + 1, loop.epochs + 1):
        record = trainer.epoch(epoch)
        curve.append(record)
        # saved before it is reported: a reported epoch is never trained again
        checkpoints.save(model, trainer.optimizer, curve, folder / STATE)
        yield record
    return tuple(curve)


class Trainer:
    """Trains a network on the device of its images, one epoch at a time."""

    def __init__(
        self,
        model: nn.Module,
        loop: Loop,
        images: Images,
        lesson: Lesson,
        *,
        after_step: Callable[[], None] | None = None,
        turn: Turn = nullcontext,
        graphs: bool = False,
    ) -> None:
        device, training = images.mean.device, loop.training
        assert training.train_precision is not None or device.type == "cpu", "CandidateConfig.on(device) comes first"
        set_up_kernels(device, training)
        move(model, device, image_size=images.image_size)  # before the optimizer, whose state lies beside the weights
        self.optimizer = optimizer_of(model, loop)
        self._model, self._loop, self._images, self._lesson = model, loop, images, lesson
        self._after_step, self._turn = after_step, turn
        self._device, self._layout = device, layout(model)
        self._whole_batch = placement.compile_model(model, training)
        if graphs and self._whole_batch is model:
            with turn():
                self._whole_batch = placement.capture_model(model, training, image_size=images.image_size)

    def epoch(self, epoch: int) -> EpochRecord:
        """Train for one pass, re-estimate BatchNorm and validate."""
        loop, started = self._loop, time.perf_counter()
        train_loss, train_accuracy = self.learn(epoch)
        val_loss, val_accuracy = self.check()
        return EpochRecord(
            stage=loop.stage,
            epoch=epoch,
            epochs=loop.epochs,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - started,
        )

    def check(self) -> tuple[float, float]:
        """Re-estimate BatchNorm; return loss in nats and accuracy on the validation split."""
        with self._turn():
            recalibrate(self._model, self._loop, self._images)
            return evaluate(self._model, self._images, self._loop.training)

    def learn(self, epoch: int) -> tuple[float, float]:
        """Train for one pass over the training split; return mean loss in nats and accuracy on the augmented images.

        The accuracy is that of images with a label. Waits for a GPU only once, at the end.
        """
        total_loss, correct, labelled = (torch.zeros((), device=self._device) for _ in range(3))
        count = 0
        for index, value, logits_BC in self.steps(epoch):
            total_loss += value * len(index)
            labels = self._images.train_labels[index]
            correct += (logits_BC.argmax(1) == labels).sum()
            labelled += (labels >= 0).sum()
            count += len(index)
        with self._turn():  # the GPU is still computing
            mean_loss = total_loss.item() / count
        if not math.isfinite(mean_loss):
            raise ValueError(
                f"training diverged: {self._loop.stage} loss is {mean_loss} in epoch {epoch} at learning rate"
                f" {self._loop.learning_rate}."
            )
        return mean_loss, correct.item() / max(labelled.item(), 1)

    def steps(self, epoch: int) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
        """Train for one pass; yield samples [B], loss and logits [B, C] of each step, detached and on the device.

        The consumer's own work on them belongs to the step: the device is given back afterwards.
        """
        loop, images = self._loop, self._images
        set_up_kernels(self._device, loop.training)
        # a seed of its own for every epoch (dropout): resuming must not depend on earlier epochs
        torch.manual_seed(seed_for(loop.training.seed, loop.stage, epoch))
        view = loop.first_view + epoch - 1
        batches = _batches(loop, images, epoch)
        seen = views.make_views(images, loop.augment, epoch=view)
        self._lesson.open(view, self._turn)
        seen.announce(images.train_images, batches)
        self._model.train()
        for step, host_index in enumerate(batches):
            with self._turn():
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(loop, (epoch - 1 + (step + 1) / len(batches)) / loop.epochs)
                index = host_index.to(self._device, non_blocking=True)
                pixels = seen.batch(images.train_images, host_index)
                target, labelled = views.targets(seen, images, index)
                batch = Batch(index=index, view=view, pixels=pixels, target=target, labelled=labelled)
                yield (index, *self._step(batch))

    def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run forward, backward and update; return loss and logits [B, C], both detached."""
        whole = len(batch.index) == self._loop.training.batch_size
        network = self._whole_batch if whole else self._model  # a smaller last batch would compile again
        with autocast(self._device, self._loop.training):
            logits_BC = network(self._images.normalise(batch.pixels, self._layout))
        value = self._lesson(logits_BC, batch)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            value.backward()
        except RuntimeError as error:
            raise placement.to_machine_error(error) or error from None
        self.optimizer.step()
        if self._after_step is not None:
            self._after_step()
        return value.detach(), logits_BC.detach()


def optimizer_of(model: nn.Module, loop: Loop) -> torch.optim.Optimizer:
    """The optimizer named by `loop.optimizer`, over all weights, those of BatchNorm included.

    AdamW's decay is decoupled and spares vectors (biases, norms); Nesterov SGD's is part of the gradient.
    """
    settings: dict[str, Any] = {"lr": loop.learning_rate, "weight_decay": loop.training.weight_decay, "fused": True}
    if loop.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=MOMENTUM, nesterov=True, **settings)
    decayed: dict[str, Any] = {"params": [weight for weight in model.parameters() if weight.ndim > 1]}
    spared: dict[str, Any] = {"params": [weight for weight in model.parameters() if weight.ndim <= 1]}
    return torch.optim.AdamW([decayed, spared | {"weight_decay": 0.0}], **settings)


def learning_rate(loop: Loop, progress: float) -> float:
    """The rate at `progress` in (0, 1]: 5 % of linear warm-up, then a cosine to 0, or the peak without `anneal`."""
    if progress < WARMUP_SHARE:
        return loop.learning_rate * progress / WARMUP_SHARE
    done = (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE) if loop.anneal else 0.0
    return loop.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def recalibrate(model: nn.Module, loop: Loop, images: Images) -> None:
    """Re-estimate BatchNorm statistics from the first views of training images evenly spread over the split.

    Short runs leave torchvision's running averages near their initial values, which gives chance accuracy. Every batch
    has images from the whole split: folders are ordered by class, and a batch of one class has the wrong variance.
    """
    seen = views.make_views(images, loop.augment, epoch=loop.first_view)
    picks = torch.from_numpy(sample_evenly(len(images.train_labels), RECALIBRATION_IMAGES))
    rounds = -(-len(picks) // loop.training.batch_size)
    parts = [picks[first::rounds] for first in range(rounds) if len(picks[first::rounds]) > 1]
    batches = (images.normalise(seen.batch(images.train_images, part), layout(model)) for part in parts)
    with torch.no_grad(), autocast(images.mean.device, loop.training):
        recalibrate_bn(model, batches)


@torch.no_grad()
def evaluate(model: nn.Module, images: Images, training: TrainingConfig) -> tuple[float, float]:
    """Measure cross-entropy in nats and accuracy (0 to 1) on the validation split, in evaluation mode.

    Waits for a GPU only once, at the end.
    """
    model.eval()
    device, count = images.mean.device, len(images.val_labels)
    total, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    parts = [slice(start, start + EVAL_BATCH) for start in range(0, count, EVAL_BATCH)]
    if isinstance(images.val_images, Streamed):
        images.val_images.announce(parts)
    for part in parts:
        labels = images.val_labels[part]
        with autocast(device, training):
            logits_BC = model(images.normalise(torch.div(images.val_images[part], 255), layout(model)))
        total += F.cross_entropy(logits_BC.float(), labels, reduction="sum")
        correct += (logits_BC.argmax(1) == labels).sum()
    return total.item() / count, correct.item() / count


def _batches(loop: Loop, images: Images, epoch: int) -> list[Tensor]:
    """The sample indices of each batch of an epoch, on the CPU."""
    order = draws.batch_order(seed_for(loop.training.seed, loop.stage), epoch, len(images.train_labels))
    # BatchNorm cannot train on a single image
    return [part for part in order.split(loop.training.batch_size) if len(part) > 1]
