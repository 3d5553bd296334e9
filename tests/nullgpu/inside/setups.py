"""Small images, small networks and one epoch on the stand-in, for the tests of this folder."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import null_device
import torch
from torch import Tensor, nn

from trainables.config.candidate import AugmentConfig, StudentConfig
from trainables.config.training import TrainingConfig
from trainables.stages.data.on_device import Images
from trainables.stages.data.streaming import Streamed
from trainables.stages.export import fake_quantize
from trainables.stages.export.scheme import Scheme
from trainables.stages.models import placement
from trainables.stages.models.build import build_model
from trainables.stages.pruning.methods import masks, prune
from trainables.stages.training.lessons import LogitsAtHand
from trainables.stages.training.loop import Loop, Trainer
from trainables.stages.training.stage import apply_masks

CLASSES, COUNT, BATCH = 10, 56, 16
STEPS = 4  # three whole batches and one of 8
CUDA = torch.device("cuda", 0)
AUGMENTS = {
    "padded": AugmentConfig(),
    "resized": AugmentConfig(crop="resized"),
    "randaugment": AugmentConfig(randaugment_magnitude=9),
    "mixup": AugmentConfig(mixup_alpha=0.2),
    "all": AugmentConfig(crop="resized", randaugment_magnitude=9, mixup_alpha=0.2),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One combination of what a training step depends on."""

    network: str = "alexnet_small"
    size: int = 32
    """Pixels of a side of the images."""
    network_size: int | None = None
    """Pixels of a side of the network's input; None is that of the images."""
    augment: str = "padded"
    streamed: bool = False
    precision: str = "amp"
    loss: str = "kd"
    stage: str = "student"
    deterministic: bool = False

    def __str__(self) -> str:
        """The settings that are not the default."""
        changed = {name: value for name, value in vars(self).items() if value != getattr(Case, name)}
        return " ".join(name if value is True else str(value) for name, value in changed.items()) or "default"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an epoch asked of the device, by counter; zeros left out."""

    steps: list[dict[str, int]]
    epoch: dict[str, int]
    """With validation."""


def make_images(size: int, network_size: int, *, streamed: bool) -> Images:
    """Random images on the device, or streamed to it."""
    generator = torch.Generator().manual_seed(0)
    train = torch.randint(0, 256, (COUNT, 3, size, size), dtype=torch.uint8, generator=generator)
    val = torch.randint(0, 256, (20, 3, network_size, network_size), dtype=torch.uint8, generator=generator)

    def put(images: Tensor) -> Tensor | Streamed:
        return Streamed(images, CUDA) if streamed else images.to(CUDA)

    return Images(
        train_images=put(train),
        train_labels=(torch.arange(COUNT) % CLASSES).to(CUDA),
        val_images=put(val),
        val_labels=(torch.arange(20) % CLASSES).to(CUDA),
        mean=torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1).to(CUDA),
        std=torch.tensor([0.2, 0.2, 0.3]).view(1, 3, 1, 1).to(CUDA),
        num_classes=CLASSES,
    )


class _Strict:
    """A turn in which PyTorch raises an error where the host waits for the device; it counts what each step asks."""

    def __init__(self) -> None:
        self.steps: list[dict[str, int]] = []
        self.on = False

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        inside = self.on and len(self.steps) < STEPS  # the turns after the steps are those that wait, once an epoch
        before = null_device.counts()
        torch.cuda.set_sync_debug_mode("error" if inside else "default")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
            if inside:
                self.steps.append(null_device.since(before))


def run(case: Case, plant: Callable[[Trainer], None] = lambda trainer: None) -> Asked:
    """Train three epochs; return what the steps of the second and the whole third asked of the device.

    In the first one cuDNN chooses its algorithms, and workspaces are allocated.

    Args:
        plant: changes the trainer before it trains, to see what comes of a fault.
    """
    training = TrainingConfig(batch_size=BATCH, train_precision=case.precision, deterministic=case.deterministic)
    network_size = case.network_size or case.size
    images = make_images(case.size, network_size, streamed=case.streamed)
    torch.manual_seed(0)
    network = build_model(case.network, num_classes=CLASSES, image_size=network_size)
    strict = _Strict()
    loop = Loop(
        stage=case.stage,
        epochs=100,
        learning_rate=1e-3,
        training=training,
        optimizer="sgd" if case.stage == "teacher" else "adamw",
        augment=AUGMENTS[case.augment],
    )
    after = _masking(network, case.stage, network_size)
    student = StudentConfig(kd_loss=case.loss, alpha=0.0 if case.loss == "none" else 0.9, temperature=4.0)
    lesson = LogitsAtHand(student, images, label_smoothing=0.1)
    trainer = Trainer(network, loop, images, lesson, after_step=after, turn=strict)
    plant(trainer)
    trainer.epoch(1)
    strict.on = True
    trainer.learn(2)
    assert len(strict.steps) == STEPS
    strict.on = False
    before = null_device.counts()
    trainer.epoch(3)
    return Asked(steps=strict.steps, epoch=null_device.since(before))


def _masking(network: nn.Module, stage: str, image_size: int) -> Callable[[], None] | None:
    """Zero weights and round, as the stage does; returns what follows each step."""
    if stage not in ("recovery", "qat"):
        return None
    shape: dict[str, Any] = {"image_size": image_size, "num_classes": CLASSES}
    prune(network, method="l1_unstructured", ratio=0.3, **shape)
    placement.move(network, CUDA, image_size=image_size)
    with null_device.computing():  # which weights are zero must be known
        zeros = masks(network, "l1_unstructured")
    assert zeros
    if stage == "qat":
        original = ".parametrizations.weight.original"
        zeros = {name.replace(".weight", original): zero for name, zero in zeros.items()}
        fake_quantize.insert(network, Scheme(activation="uint8", symmetric=False, reduce_range=False))
    return lambda: apply_masks(network, zeros)
