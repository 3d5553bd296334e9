import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trainables.config.candidate import OPTIMIZERS, AugmentConfig
from trainables.config.training import TrainingConfig
from trainables.records.stages import EpochRecord
from trainables.stages.data.on_device import Images
from trainables.stages.data.streaming import Streamed
from trainables.stages.training import loop as loop_module
from trainables.stages.training.lessons import Labels
from trainables.stages.training.loop import (
    Batch,
    Loop,
    Turn,
    evaluate,
    learning_rate,
    optimizer_of,
    recalibrate,
    seed_for,
    train,
)

CLASSES = 3


@pytest.fixture
def images() -> Images:
    """Coloured squares: the class is the brightest channel."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 96)
    pixels = rng.integers(0, 100, (96, 3, 8, 8), dtype=np.uint8)
    pixels[np.arange(96), labels] += 100
    tensor, target = torch.from_numpy(pixels), torch.from_numpy(labels)
    half = torch.full((1, 3, 1, 1), 0.5)
    return Images(
        train_images=tensor[:64],
        train_labels=target[:64],
        val_images=tensor[64:],
        val_labels=target[64:],
        mean=half,
        std=half,
        num_classes=CLASSES,
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(8, CLASSES),
    )  # fmt: skip


def loop(epochs: int = 4, **augment: object) -> Loop:
    return Loop(
        stage="student",
        epochs=epochs,
        learning_rate=0.02,
        training=TrainingConfig(batch_size=15),
        augment=AugmentConfig(crop_padding=1, **augment),
    )


LESSON = Labels(label_smoothing=0.0)


def run(model: nn.Module, images: Images, folder: Path, stop_after: int | None = None, **options) -> list[EpochRecord]:
    records = []
    epochs = train(model, options.pop("loop", loop()), images, LESSON, folder, **options)
    for record in epochs:
        records.append(record)
        if record.epoch == stop_after:
            epochs.close()
    return records


@pytest.mark.parametrize("augment", [{}, {"mixup_alpha": 0.4}, {"randaugment_magnitude": 9}])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_2_and_2_epochs_resumed_equal_4_bit_for_bit(
    images: Images, tmp_path: Path, augment: dict, optimizer: str
) -> None:
    whole, parts, again = network(), network(), network()
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    asked = dataclasses.replace(loop(**augment), optimizer=optimizer)
    curve = run(whole, images, tmp_path / "whole", loop=asked)
    first = run(parts, images, tmp_path / "parts", stop_after=2, loop=asked)
    rest = run(again, images, tmp_path / "parts", loop=asked)
    assert [record.epoch for record in first + rest] == [1, 2, 3, 4]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)
    assert [(r.train_loss, r.val_loss, r.val_accuracy) for r in first + rest] == [
        (r.train_loss, r.val_loss, r.val_accuracy) for r in curve
    ]


def test_accuracy_in_training_is_that_of_images_with_a_label(images: Images, tmp_path: Path) -> None:
    """A network that calls everything class 0 is right about all of them, whatever those without a label show."""
    zeros = torch.zeros(40, dtype=torch.int64)
    some = dataclasses.replace(images, train_labels=torch.cat([zeros, zeros[:24] - 1]), unlabeled=24)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    (record,) = run(model, some, tmp_path, loop=dataclasses.replace(loop(1), learning_rate=1e-9))
    assert record.train_accuracy == 1


@pytest.mark.parametrize(
    ("optimizer", "step"), [("sgd", 0.1 * 1.9 * (0.5 + 0.2 * 2.0)), ("adamw", 0.1 * (1 + 0.2 * 2.0))]
)
def test_the_first_step_of_an_optimizer_is_the_textbooks(optimizer: str, step: float) -> None:
    """Nesterov: rate (1 + momentum) (gradient + decay weight); AdamW: rate (sign of the gradient + decay weight)."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    training = TrainingConfig(weight_decay=0.2)
    asked = dataclasses.replace(loop(), learning_rate=0.1, training=training, optimizer=optimizer)
    made = optimizer_of(model, asked)
    (0.5 * model.weight).sum().backward()
    made.step()
    assert model.weight.item() == pytest.approx(2.0 - step, abs=1e-6)


@pytest.mark.parametrize(("optimizer", "spared"), [("adamw", True), ("sgd", False)])
def test_adamw_decays_no_bias_and_nothing_that_normalises(optimizer: str, spared: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    for weight in model.parameters():
        nn.init.constant_(weight, 2.0)
        weight.grad = torch.zeros_like(weight)
    training = TrainingConfig(weight_decay=0.2)
    optimizer_of(model, dataclasses.replace(loop(), learning_rate=0.1, training=training, optimizer=optimizer)).step()
    decayed = {name: bool((weight != 2.0).all()) for name, weight in model.named_parameters()}
    assert decayed == {"0.weight": True, "0.bias": not spared, "1.weight": not spared, "1.bias": not spared}


def test_it_learns_and_its_records_are_what_evaluation_says(images: Images, tmp_path: Path) -> None:
    model = network()
    curve = run(model, images, tmp_path, loop=loop(8))
    assert curve[-1].val_accuracy > 0.9 > 0.5 > curve[-1].val_loss
    assert evaluate(model, images, loop().training) == (curve[-1].val_loss, curve[-1].val_accuracy)


def test_evaluation_has_streamed_images_read_ahead(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[slice] = []
    monkeypatch.setattr(Streamed, "announce", lambda self, parts: announced.extend(parts))
    model, settings = network(), TrainingConfig()
    streamed = dataclasses.replace(images, val_images=Streamed(images.val_images, torch.device("cpu")))
    assert evaluate(model, streamed, settings) == evaluate(model, images, settings)
    assert announced == [slice(0, loop_module.EVAL_BATCH)]


def test_amp_learns_too_and_gives_other_weights_of_the_same_type(images: Images, tmp_path: Path) -> None:
    models = {precision: network() for precision in ("fp32", "amp")}
    for precision, model in models.items():
        (tmp_path / precision).mkdir()
        training = TrainingConfig(batch_size=15, train_precision=precision)
        curve = run(model, images, tmp_path / precision, loop=dataclasses.replace(loop(8), training=training))
        assert curve[-1].val_accuracy > 0.9
    weights = [model[0].weight for model in models.values()]
    assert weights[0].dtype == weights[1].dtype == torch.float32
    assert not torch.equal(*weights)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_training_leaves_nothing_behind_for_the_next_one_in_its_process(
    images: Images, tmp_path: Path, deterministic: bool
) -> None:
    """Trials share a process: the same one before and after a very different one gives the same bits."""
    own = dataclasses.replace(loop(2), training=TrainingConfig(batch_size=15, deterministic=deterministic))
    other = dataclasses.replace(
        loop(1, mixup_alpha=0.4),
        training=TrainingConfig(batch_size=8, train_precision="amp", deterministic=not deterministic, seed=5),
    )
    models = [network(), network(), network()]
    for number, (model, plan) in enumerate(zip(models, (own, other, own), strict=True)):
        (tmp_path / str(number)).mkdir()
        run(model, images, tmp_path / str(number), loop=plan)
    for first, again in zip(models[0].state_dict().values(), models[2].state_dict().values(), strict=True):
        assert torch.equal(first, again)


def test_training_gives_all_epochs_back_even_those_of_an_earlier_run(images: Images, tmp_path: Path) -> None:
    run(network(), images, tmp_path, stop_after=3)
    epochs = train(network(), loop(), images, LESSON, tmp_path)
    assert next(epochs).epoch == 4
    with pytest.raises(StopIteration) as end:
        next(epochs)
    assert [record.epoch for record in end.value.value] == [1, 2, 3, 4]


def test_evaluation_at_epoch_1_is_not_chance_with_sluggish_batchnorm(images: Images, tmp_path: Path) -> None:
    """torchvision's MobileNetV3 momentum of 0.01 reads as chance for its first epochs unless it is re-estimated."""
    model = network()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.001
    curve = run(model, images, tmp_path, loop=loop(4))
    assert curve[-1].val_accuracy > 0.6


def test_batchnorm_is_estimated_on_all_classes_of_images_that_lie_class_by_class(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders are read class by class; statistics of the first class alone cost 14 points of accuracy."""
    monkeypatch.setattr(loop_module, "RECALIBRATION_IMAGES", 40)
    levels = torch.arange(160) // 20  # eight classes, each of its own brightness
    pixels = (levels * 30).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    by_class = dataclasses.replace(images, train_images=pixels, train_labels=levels)
    layer = nn.BatchNorm2d(3)
    recalibrate(nn.Sequential(layer), loop(flip=False, crop="none"), by_class)
    whole = by_class.normalise(pixels.float() / 255)
    torch.testing.assert_close(layer.running_mean, whole.mean(dim=(0, 2, 3)), rtol=0.05, atol=0.02)
    torch.testing.assert_close(layer.running_var, whole.var(dim=(0, 2, 3)), rtol=0.1, atol=0.0)


def test_masks_are_put_back_after_every_step(images: Images, tmp_path: Path) -> None:
    model = network()
    calls = []
    run(model, images, tmp_path, after_step=lambda: calls.append(1))
    assert len(calls) == 4 * 5  # 64 images in batches of 15, the last of 4 included


def test_every_step_takes_its_turn_on_the_device(images: Images, tmp_path: Path) -> None:
    turns = []

    @contextmanager
    def turn() -> Iterator[None]:
        turns.append(1)
        yield

    run(network(), images, tmp_path, turn=turn)
    assert len(turns) == 4 * (5 + 2)  # steps, and an epoch the reading of its loss and one evaluation


def test_divergence_is_a_value_error_that_names_loss_and_learning_rate(images: Images, tmp_path: Path) -> None:
    class Broken:
        def open(self, view: int, turn: Turn) -> None: ...

        def __call__(self, logits_BC: torch.Tensor, batch: Batch) -> torch.Tensor:
            return logits_BC.sum() * float("nan")

    with pytest.raises(ValueError, match=r"loss is nan in epoch 1 at learning rate 0\.02"):
        next(train(network(), loop(), images, Broken(), tmp_path))


def test_a_rate_that_recovery_will_anneal_stays_at_its_peak_after_the_warm_up() -> None:
    plan = dataclasses.replace(loop(), learning_rate=0.02, anneal=False)
    assert learning_rate(plan, 0.025) == pytest.approx(0.01)
    assert learning_rate(plan, 0.05) == learning_rate(plan, 0.5) == learning_rate(plan, 1.0) == 0.02


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    plan = loop()
    assert learning_rate(plan, 0.025) == pytest.approx(0.01)
    assert learning_rate(plan, 0.05) == pytest.approx(0.02)
    assert learning_rate(plan, 1.0) == pytest.approx(0, abs=1e-12)


def test_seeds_differ_by_every_part() -> None:
    seeds = {seed_for(0, "student", 1), seed_for(1, "student", 1), seed_for(0, "teacher", 1), seed_for(0, "student", 2)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
