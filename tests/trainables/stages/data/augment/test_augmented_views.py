import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.Image import Resampling
from sample_views import CONFIGS, IMAGES, NUM_SAMPLES, PLAIN, SIZE, pictures, views
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from trainables.config.candidate import AugmentConfig
from trainables.stages.data.augment import draws, randaugment
from trainables.stages.data.augment.draws import batch_order
from trainables.stages.data.augment.views import Views


@pytest.mark.parametrize("name", CONFIGS)
def test_view_is_float32_in_the_unit_interval(name: str) -> None:
    view = views(CONFIGS[name]).batch(IMAGES, torch.arange(7))
    assert view.dtype == torch.float32
    assert view.shape == (7, 3, SIZE, SIZE)
    assert view.min() >= 0 and view.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", CONFIGS)
def test_larger_views_are_what_pillow_makes_of_the_small_ones(name: str) -> None:
    """Resized crops alone cannot be compared: their boxes are scaled once, to the size that is asked for."""
    config, index = CONFIGS[name], torch.arange(9)
    large = Views(config, num_samples=NUM_SAMPLES, epoch=1, image_size=SIZE, output_size=3 * SIZE)
    view = large.batch(IMAGES, index)
    assert view.shape == (9, 3, 3 * SIZE, 3 * SIZE)
    assert torch.equal(large.batch(IMAGES, index[4:5])[0], view[4])
    if config.crop == "resized":
        small = views(config, epoch=1).batch(IMAGES, index)
        assert (F.avg_pool2d(view, 3) - small).abs().mean() < 0.02
        return
    small = views(config, epoch=1).batch(IMAGES, index)
    for got, expected in zip(view, small, strict=True):
        pillow = [Image.fromarray(channel.numpy()).resize((3 * SIZE,) * 2, Resampling.BILINEAR) for channel in expected]
        np.testing.assert_allclose(got.numpy(), np.stack([np.asarray(channel) for channel in pillow]), atol=1e-5)


def test_without_augmentation_the_view_is_the_image() -> None:
    index = torch.tensor([5, 0, 5])
    assert torch.equal(views(PLAIN).batch(IMAGES, index), IMAGES[index] / 255)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=12, deadline=None)
@given(index=st.lists(st.integers(0, NUM_SAMPLES - 1), min_size=1, max_size=NUM_SAMPLES), epoch=st.integers(0, 3))
def test_view_of_a_sample_is_bit_equal_whatever_the_batch(name: str, index: list[int], epoch: int) -> None:
    whole = views(CONFIGS[name], epoch).batch(IMAGES, torch.arange(NUM_SAMPLES))
    part = views(CONFIGS[name], epoch).batch(IMAGES, torch.tensor(index))
    assert torch.equal(part, whole[index])


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"plain"}))
def test_epochs_and_seeds_differ(name: str) -> None:
    index = torch.arange(NUM_SAMPLES)
    config = CONFIGS[name]
    other_seed = AugmentConfig(**{**vars(config), "data_seed": 99})
    first = views(config).batch(IMAGES, index)
    assert not torch.equal(first, views(config, epoch=1).batch(IMAGES, index))
    assert not torch.equal(first, views(other_seed).batch(IMAGES, index))


def test_views_do_not_touch_torch_or_numpy_generators() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    views(CONFIGS["all"]).batch(IMAGES, torch.arange(8))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_switching_mixup_on_keeps_crops_and_flips() -> None:
    index = torch.arange(NUM_SAMPLES)
    unmixed = views(AugmentConfig()).batch(IMAGES, index)
    mixing = views(AugmentConfig(mixup_alpha=0.8))
    partner, lam = mixing.partners(index)
    lam_4d = lam.view(-1, 1, 1, 1)
    assert torch.equal(mixing.batch(IMAGES, index), lam_4d * unmixed + (1 - lam_4d) * unmixed[partner])


def test_partners_are_a_permutation_with_weights_of_the_beta_distribution() -> None:
    mixing = Views(AugmentConfig(mixup_alpha=0.4), num_samples=20_000, epoch=2, image_size=SIZE)
    partner, lam = mixing.partners(torch.arange(20_000))
    assert torch.equal(partner.sort().values, torch.arange(20_000))
    assert lam.dtype == torch.float32
    assert lam.mean().item() == pytest.approx(0.5, abs=0.01)
    assert lam.var().item() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.005)


def test_without_mixup_everyone_is_his_own_partner() -> None:
    partner, lam = views(PLAIN).partners(torch.tensor([3, 1]))
    assert partner.tolist() == [3, 1]
    assert lam.tolist() == [1, 1]


def test_padded_crop_and_flip_equal_torchvision() -> None:
    padding = 4
    parameters = draws.draw_epoch(AugmentConfig(), NUM_SAMPLES, 5, SIZE)
    actual = views(AugmentConfig(), epoch=5).batch(IMAGES, torch.arange(NUM_SAMPLES))
    for i in range(NUM_SAMPLES):
        top, left = (parameters["shift"][i] + padding).tolist()
        expected = tv.crop(tv.pad(IMAGES[i], [padding] * 4), top, left, SIZE, SIZE)
        expected = tv.hflip(expected) if parameters["flip"][i] else expected
        assert torch.equal(actual[i], expected / 255)


def test_offsets_are_uniform_and_half_of_the_images_are_flipped() -> None:
    parameters = draws.draw_epoch(AugmentConfig(), 90_000, 0, SIZE)
    shares = np.bincount(parameters["shift"].ravel() + 4) / parameters["shift"].size
    assert shares == pytest.approx(np.full(9, 1 / 9), abs=0.005)
    assert parameters["flip"].mean() == pytest.approx(0.5, abs=0.01)


def test_resized_crop_equals_torchvision() -> None:
    config = AugmentConfig(crop="resized")
    parameters = draws.draw_epoch(config, NUM_SAMPLES, 1, SIZE)
    actual = views(config, epoch=1).batch(IMAGES, torch.arange(NUM_SAMPLES))
    for i in range(NUM_SAMPLES):
        expected = tv.resized_crop(IMAGES[i].float(), *parameters["box"][i].tolist(), [SIZE, SIZE], antialias=False)
        expected = tv.hflip(expected) if parameters["flip"][i] else expected
        torch.testing.assert_close(actual[i], expected / 255, atol=1e-5, rtol=0)


def test_boxes_lie_inside_the_image_with_area_and_ratio_in_range() -> None:
    boxes = draws.draw_epoch(AugmentConfig(crop="resized"), 5000, 0, 64)["box"].astype(np.int64)
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 64).all() and (left + width <= 64).all()
    area, ratio = height * width / 64**2, width / height
    assert area.min() > 0.07 and area.max() <= 1
    assert area.mean() == pytest.approx(0.5, abs=0.05)
    assert ratio.min() > 0.68 and ratio.max() < 1.45


def test_box_that_never_fits_becomes_the_whole_image() -> None:
    uniform = np.ones((2, 10, 4))  # the whole area at ratio 4/3 is wider than the image
    assert draws._choose_boxes(uniform, 32).tolist() == [[0, 0, 32, 32]] * 2


EXACT: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "identity": lambda image, level, sign: image,
    "brightness": lambda image, level, sign: tv.adjust_brightness(image, 1 + 0.9 * level * sign),
    "color": lambda image, level, sign: tv.adjust_saturation(image, 1 + 0.9 * level * sign),
    "contrast": lambda image, level, sign: tv.adjust_contrast(image, 1 + 0.9 * level * sign),
    "sharpness": lambda image, level, sign: tv.adjust_sharpness(image, 1 + 0.9 * level * sign),
    "posterize": lambda image, level, sign: tv.posterize(image, 8 - round(4 * level)),
    "solarize": lambda image, level, sign: tv.solarize(image, 255 - 255 * level),
    "auto_contrast": lambda image, level, sign: tv.autocontrast(image),
    "equalize": lambda image, level, sign: tv.equalize(image),
}


def sheared(image: Tensor, x: float, y: float) -> Tensor:
    shear = [float(np.degrees(np.arctan(x))), float(np.degrees(np.arctan(y)))]
    return tv.affine(image, 0.0, [0, 0], 1.0, shear, InterpolationMode.NEAREST, center=[0, 0])


def translated(image: Tensor, x: float, y: float) -> Tensor:
    return tv.affine(image, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0], InterpolationMode.NEAREST)


GEOMETRIC: dict[str, Callable[[Tensor, float], Tensor]] = {
    "shear_x": lambda image, level: sheared(image, 0.3 * level, 0),
    "shear_y": lambda image, level: sheared(image, 0, 0.3 * level),
    "translate_x": lambda image, level: translated(image, 150 / 331 * 32 * level, 0),
    "translate_y": lambda image, level: translated(image, 0, 150 / 331 * 32 * level),
    "rotate": lambda image, level: tv.rotate(image, 30 * level, InterpolationMode.NEAREST),
}


def one_operation(images: Tensor, name: str, negative: bool, magnitude: int) -> Tensor:
    operations = torch.full((len(images), 1), randaugment.OPERATIONS.index(name))
    return randaugment.apply(images, operations, torch.full_like(operations, negative, dtype=torch.bool), magnitude)


def test_every_operation_is_checked() -> None:
    assert {*EXACT, *GEOMETRIC} == set(randaugment.OPERATIONS)


@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_color_operation_equals_torchvision(name: str, negative: bool, magnitude: int) -> None:
    flat = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    images = torch.cat([pictures(4, 32), flat, pictures(1, 32) // 3 + 60])
    actual = one_operation(images, name, negative, magnitude)
    expected = torch.stack([EXACT[name](image, magnitude / 30, -1 if negative else 1) for image in images])
    # Equal on x86; elsewhere torchvision's convolution and mean may round the last bit the other way.
    difference = (actual.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.002


@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operation_equals_torchvision(name: str, negative: bool, magnitude: int) -> None:
    images = pictures(4, 32)
    actual = one_operation(images, name, negative, magnitude)
    expected = torch.stack([GEOMETRIC[name](image, (-1 if negative else 1) * magnitude / 30) for image in images])
    # Nearest neighbours: a position half way between two pixels may round either way.
    assert (actual != expected).float().mean() < 0.02


def test_rows_of_operations_run_in_order() -> None:
    images = pictures(3, 32)
    rows = torch.tensor([[randaugment.OPERATIONS.index(name) for name in ("solarize", "rotate")]] * 3)
    both = randaugment.apply(images, rows, torch.zeros_like(rows, dtype=torch.bool), 12)
    assert torch.equal(both, one_operation(one_operation(images, "solarize", False, 12), "rotate", False, 12))


def test_batch_order_is_a_pure_function_and_a_permutation() -> None:
    order = batch_order(7, 3, 1000)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, batch_order(7, 3, 1000))
    assert not torch.equal(order, batch_order(7, 4, 1000))
    assert not torch.equal(order, batch_order(8, 3, 1000))


def test_padding_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="crop_padding=8 and images of 8 pixels"):
        Views(AugmentConfig(crop_padding=8), num_samples=4, epoch=0, image_size=8)


def test_reads_a_memory_map(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="c"))
    index = torch.tensor([39, 2])
    assert torch.equal(views(CONFIGS["all"]).batch(mapped, index), views(CONFIGS["all"]).batch(IMAGES, index))


def test_an_epoch_of_5000_small_images_is_quick_on_one_thread() -> None:
    images, threads = pictures(5000, 32), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for epoch in range(3):
            start = time.perf_counter()
            epoch_views = Views(AugmentConfig(), num_samples=5000, epoch=epoch, image_size=32)
            for index in batch_order(0, epoch, 5000).split(128):
                epoch_views.batch(images, index)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds) < 0.6  # 0.05 s alone; the rest is for machines that do other things at the same time
