"""No training step waits for the device, and an epoch waits a known number of times, in every combination."""

import itertools
from collections.abc import Iterator

import null_device
import pytest
import torch
from setups import AUGMENTS, CLASSES, CUDA, Case, run
from torch import nn

from trainables.config.checks import MachineError
from trainables.config.training import TrainingConfig
from trainables.stages.models import placement
from trainables.stages.models.build import build_model
from trainables.stages.training.loop import Trainer

NETWORKS = ("resnet18", "mobilenet_v3_small", "alexnet", "efficientnet_b0", "densenet121", "convnext_tiny")
PRECISIONS, STAGES = ("amp", "fp32"), ("teacher", "student", "recovery", "qat")
LOSSES = ("kd", "logit_std", "dkd", "dist", "wttm", "mse", "none")
WAITS_PER_EPOCH = 5
"""Three numbers of the training images and two of validation come to the host, each once."""


def combinations() -> Iterator[Case]:
    """Networks, precisions, augmentation by streaming, losses by Mixup, stages by precision, and large inputs."""
    for network in NETWORKS:
        yield Case(network=network)
    for network in ("mobilenet_v3_small", "resnet18"):
        yield Case(network=network, precision="fp32")
    for augment, streamed in itertools.product(AUGMENTS, (False, True)):
        yield Case(network="mobilenet_v3_small", augment=augment, streamed=streamed)
    for loss, augment in itertools.product(LOSSES, ("padded", "mixup")):
        yield Case(loss=loss, augment=augment)
    for stage, precision, network in itertools.product(STAGES, PRECISIONS, ("resnet8", "alexnet_small")):
        yield Case(network=network, stage=stage, precision=precision)
    for augment in ("padded", "all"):  # small images, scaled on the device
        yield Case(network="mobilenet_v3_small", network_size=224, augment=augment)
    for network in ("resnet18", "alexnet_small", "mobilenet_v3_small"):
        yield Case(network=network, deterministic=True, augment="all", loss="dkd")


CASES = {str(case): case for case in combinations()}


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def waits(asked: dict[str, int]) -> int:
    return sum(asked.get(name, 0) for name in null_device.WAITS)


@pytest.mark.parametrize("name", CASES)
def test_a_step_never_waits_and_an_epoch_as_often_as_it_reads_numbers(name: str) -> None:
    asked = run(CASES[name])
    assert [waits(step) for step in asked.steps] == [0, 0, 0, 0]
    assert all(step["launch"] > 0 for step in asked.steps)
    assert waits(asked.epoch) == WAITS_PER_EPOCH


def test_there_are_many_combinations() -> None:
    assert len(CASES) >= 45


def test_an_operation_without_a_deterministic_form_is_named() -> None:
    with pytest.raises(MachineError, match="adaptive_avg_pool2d_backward_cuda has no deterministic form"):
        run(Case(network="alexnet", size=96, deterministic=True))


def test_algorithms_are_timed_for_shapes_that_repeat_alone() -> None:
    """A network that is placed sees two images once; each convolution would be run by up to ten algorithms."""
    network = build_model("alexnet_small", num_classes=CLASSES, image_size=32)
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in network.modules())
    placement.set_up_kernels(CUDA, TrainingConfig(train_precision="fp32"))
    before = null_device.counts()
    placement.move(network, CUDA, image_size=32)
    assert null_device.since(before)["dnn"] == convolutions
    assert torch.backends.cudnn.benchmark
    before = null_device.counts()
    network(torch.zeros(3, 3, 32, 32, device=CUDA))
    assert null_device.since(before)["dnn"] > convolutions, "training's own shapes are timed"


def test_a_wait_in_a_step_would_be_seen() -> None:
    def plant(trainer: Trainer) -> None:
        trainer._after_step = lambda: torch.zeros(1, device=CUDA).item()

    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        run(Case(), plant)


def test_a_tensor_on_the_wrong_device_would_be_seen() -> None:
    def plant(trainer: Trainer) -> None:
        trainer._lesson.logits_NC = trainer._lesson.logits_NC.cpu()

    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        run(Case(), plant)
