from collections.abc import Iterator

import pytest
import torch

from trainables.config.candidate import AugmentConfig
from trainables.stages.data.augment.views import Views
from trainables.stages.data.on_device import Images, place
from trainables.stages.data.streaming import AHEAD, Streamed


def pixels() -> torch.Tensor:
    return torch.arange(40 * 3 * 8 * 8).remainder(251).to(torch.uint8).view(40, 3, 8, 8)


DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("augment", [{}, {"mixup_alpha": 0.4}, {"randaugment_magnitude": 9}, {"crop": "resized"}])
@pytest.mark.parametrize("size", [8, 12])
def test_streamed_views_equal_resident_ones(device: str, augment: dict, size: int) -> None:
    config = AugmentConfig(**{"crop_padding": 2} | augment)
    views = Views(config, num_samples=40, epoch=1, image_size=8, output_size=size)
    streamed = Streamed(pixels(), torch.device(device))
    batches = list(torch.randperm(40).split(7))
    views.announce(streamed, batches)
    for index in batches:
        found = views.batch(streamed, index).cpu()
        # a GPU divides by 255 through its reciprocal
        torch.testing.assert_close(found, views.batch(pixels(), index), rtol=0, atol=0 if device == "cpu" else 1e-6)


def test_it_reads_ahead_and_no_further() -> None:
    asked = []

    def batches() -> Iterator[torch.Tensor]:
        for index in torch.arange(40).split(4):
            asked.append(index)
            yield index

    streamed = Streamed(pixels(), torch.device("cpu"))
    streamed.announce(batches())
    assert len(asked) == AHEAD
    assert torch.equal(streamed[asked[0]], pixels()[:4])
    assert len(asked) == AHEAD + 1


def test_slices_are_read_ahead_as_index_tensors_are() -> None:
    streamed, parts = Streamed(pixels(), torch.device("cpu")), [slice(0, 16), slice(16, 32), slice(32, 48)]
    streamed.announce(parts)
    for part in parts:
        assert torch.equal(streamed[part], pixels()[part])
    assert not streamed._ahead  # all came from what was announced


def test_what_was_not_announced_comes_too_and_a_new_announcement_replaces_the_old_one() -> None:
    streamed, first, second = Streamed(pixels(), torch.device("cpu")), torch.tensor([3, 1]), torch.tensor([39, 0])
    streamed.announce([first, second])
    assert torch.equal(streamed[second], pixels()[second])
    streamed.announce([second])
    assert torch.equal(streamed[second], pixels()[second])
    assert torch.equal(streamed[first], pixels()[first])
    assert torch.equal(streamed[2:5], pixels()[2:5])
    assert (len(streamed), streamed.shape) == (40, (40, 3, 8, 8))


def test_the_first_images_lie_where_all_of_them_do() -> None:
    labels, one = torch.arange(40), torch.ones(1, 3, 1, 1)
    whole = Images(
        train_images=Streamed(pixels(), torch.device("cpu")),
        train_labels=labels,
        val_images=pixels(),
        val_labels=labels,
        mean=one,
        std=one,
        num_classes=40,
    )
    few = whole.take_first(5, 3)
    assert isinstance(few.train_images, Streamed)  # what a probe measures is what trials do
    assert isinstance(few.val_images, torch.Tensor)
    assert torch.equal(few.train_images[torch.arange(5)], pixels()[:5])
    assert [len(part) for part in (few.train_images, few.train_labels, few.val_images, few.val_labels)] == [5, 5, 3, 3]


def test_an_index_outside_is_an_error_of_whoever_takes_it() -> None:
    streamed, index = Streamed(pixels(), torch.device("cpu")), torch.tensor([40])
    streamed.announce([index])
    with pytest.raises(IndexError, match="out of range"):
        streamed[index]


def test_a_cpu_keeps_the_memory_map() -> None:
    images = pixels()
    assert place(images, "cpu") is images


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_holds_what_fits_and_streams_the_rest() -> None:
    assert isinstance(place(pixels(), "cuda"), torch.Tensor)
    torch.cuda.set_per_process_memory_fraction(1e-7)
    try:
        assert isinstance(place(pixels(), "cuda"), Streamed)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
