"""What becomes of training where the device has too little memory, or fails in the middle of an epoch."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import null_device
import pytest
import torch
from setups import BATCH, CUDA, STEPS, Case, make_images, run
from torch import nn

from trainables.config.candidate import AugmentConfig
from trainables.config.training import TrainingConfig
from trainables.stages.data.on_device import place
from trainables.stages.data.streaming import Streamed
from trainables.stages.models import placement
from trainables.stages.models.build import build_model
from trainables.stages.training.lessons import Labels
from trainables.stages.training.loop import Loop, Trainer, train

MB = 2**20


def give_memory_back() -> None:
    """All that nothing holds: tensors in the traceback of an earlier test's error wait for the garbage collector."""
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    give_memory_back()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def stage(network: nn.Module, folder: Path, after_step: Callable[[], None] | None = None) -> Iterator[object]:
    training = TrainingConfig(batch_size=BATCH, train_precision="fp32")
    loop = Loop(stage="student", epochs=3, learning_rate=1e-3, training=training, augment=AugmentConfig())
    images = make_images(32, 32, streamed=False)
    return train(network, loop, images, Labels(0.0), folder, after_step=after_step)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("alexnet_small", num_classes=10, image_size=32)


@pytest.mark.parametrize("allocations", [0, 1, 4])
def test_memory_that_runs_out_is_said_in_words_that_earn_a_gpu_of_its_own(allocations: int) -> None:
    """`sweeps.running.tune.retry` looks for the exception's name in the traceback."""

    def plant(trainer: Trainer) -> None:
        give_memory_back()

    with null_device.out_of_memory_after(allocations), pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        run(Case(), plant)


def test_a_share_of_the_memory_is_kept_to() -> None:
    """A hundredth of 80 GiB, of which at least half is for tensors: the context's 600 MB would be three quarters."""
    placement.set_up_process("cuda", threads=1, memory_share=0.01)
    torch.empty(300 * MB, dtype=torch.uint8, device=CUDA)
    torch.cuda.empty_cache()
    with pytest.raises(torch.OutOfMemoryError, match="allowed"):
        torch.empty(420 * MB, dtype=torch.uint8, device=CUDA)


def test_images_that_do_not_fit_are_streamed() -> None:
    images = torch.zeros(400, 3, 224, 224, dtype=torch.uint8)
    assert isinstance(place(images, "cuda"), torch.Tensor)
    with null_device.memory_of(100 * MB):
        torch.cuda.empty_cache()
        assert isinstance(place(images, "cuda"), Streamed)


def test_a_device_that_fails_in_an_epoch_loses_that_epoch_alone(tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    folder.mkdir()
    with null_device.computing():
        expected = network()
        list(stage(expected, whole))
        running = stage(network(), folder)
        next(running)
        with null_device.failing_after(50), pytest.raises(torch.AcceleratorError, match="unspecified launch failure"):
            next(running)
        resumed = network()
        assert len(list(stage(resumed, folder))) == 2
    for there, here in zip(resumed.parameters(), expected.parameters(), strict=True):
        assert torch.equal(there.cpu(), here.cpu())


def test_a_failure_comes_in_the_middle_of_a_step() -> None:
    """The test above would prove nothing if 50 kernels were none, or all, of an epoch."""
    steps = run(Case(precision="fp32", loss="none")).steps
    assert 0 < 50 < STEPS * steps[0]["launch"]
