"""Apply RandAugment (arXiv:1909.13719) to uint8 batches: two operations per image, torchvision's operations and ranges.

Each operation runs on the images that drew it and uses no statistic of the batch. Sums are integers, so results do not
depend on the batch. Shape legend: B images, C = 3 channels, H = W pixels, K operations per image.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trainables.stages.data.augment.pixels import pick, send

OPERATIONS_PER_IMAGE = 2
OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "auto_contrast",
    "equalize",
)
_GEOMETRIC = range(1, 6)
_STEPS = 30  # magnitudes run from 0 to 30, as in torchvision's 31 bins


def apply(images_BCHW: Tensor, operations_BK: Tensor, negative_BK: Tensor, magnitude: int) -> Tensor:
    """Apply K operations to every image, one after the other.

    Args:
        images_BCHW: uint8, on any device.
        operations_BK: int64 on the CPU, positions in `OPERATIONS`.
        negative_BK: bool on the CPU; negates the magnitude of operations that have a sign.
        magnitude: 0 to 30.
    """
    for operation_B, negative_B in zip(operations_BK.unbind(1), negative_BK.unbind(1), strict=True):
        images_BCHW = _warp(images_BCHW, operation_B, negative_B, magnitude)
        result = images_BCHW.clone()
        for number, name in enumerate(OPERATIONS):
            if name not in _COLOR_OPERATIONS:
                continue
            chosen = (operation_B == number).nonzero().flatten()
            if len(chosen):
                negative, there = send(negative_B[chosen], images_BCHW.device), send(chosen, images_BCHW.device)
                result[there] = _COLOR_OPERATIONS[name](images_BCHW[there], magnitude / _STEPS, negative)
        images_BCHW = result
    return images_BCHW


def _warp(images_BCHW: Tensor, operation_B: Tensor, negative_B: Tensor, magnitude: int) -> Tensor:
    """Shear, translate and rotate in one nearest-neighbour gather; leave images with other operations unchanged."""
    size = images_BCHW.shape[-1]
    chosen = ((operation_B >= _GEOMETRIC.start) & (operation_B < _GEOMETRIC.stop)).nonzero().flatten()
    if not len(chosen):
        return images_BCHW
    table = torch.tensor(
        [[_inverse_affine(name, sign * magnitude / _STEPS, size) for sign in (1, -1)] for name in OPERATIONS]
    )
    rows = send(table[operation_B[chosen], negative_B[chosen].long()], images_BCHW.device)
    chosen = send(chosen, images_BCHW.device)
    a, b, c, d, e, f = rows.view(-1, 6, 1, 1).unbind(1)
    line = torch.arange(size, device=images_BCHW.device) + (0.5 - size / 2)
    x, y = line.view(1, 1, -1), line.view(1, -1, 1)
    xs = ((a * x + b * y) + c + (size - 1) / 2).round().long()
    ys = ((d * x + e * y) + f + (size - 1) / 2).round().long()
    result = images_BCHW.clone()
    result[chosen] = pick(images_BCHW[chosen], ys, xs)
    return result


def _inverse_affine(name: str, level: float, size: int) -> tuple[float, float, float, float, float, float]:
    """Return (a, b, c, d, e, f): output pixel (x, y) is input pixel (a x + b y + c, d x + e y + f), from the centre.

    `level` is in [-1, 1]. As in torchvision, shears keep the top left corner and rotation keeps the centre.
    """
    half = size / 2
    if name == "shear_x":
        shear = 0.3 * level
        return 1, shear, shear * half, 0, 1, 0
    if name == "shear_y":
        shear = 0.3 * level
        return 1, 0, 0, shear, 1, shear * half
    shift = float(int(150 / 331 * size * level))
    if name == "translate_x":
        return 1, 0, -shift, 0, 1, 0
    if name == "translate_y":
        return 1, 0, 0, 0, 1, -shift
    if name == "rotate":
        cosine, sine = math.cos(math.radians(30 * level)), math.sin(math.radians(30 * level))
        return cosine, -sine, 0, sine, cosine, 0
    return 1, 0, 0, 0, 1, 0


def _to_grey(images: Tensor) -> Tensor:
    """Convert to ITU-R 601 luma, rounded as in torchvision: uint8, B1HW."""
    red, green, blue = images.float().unbind(1)
    return ((0.2989 * red + 0.587 * green) + 0.114 * blue).to(torch.uint8)[:, None]


def _blend(images: Tensor, other: Tensor, level: float, negative: Tensor) -> Tensor:
    """Blend `factor * images + (1 - factor) * other`, rounded down, with factor = 1 +- 0.9 * level."""
    weaker, stronger = 1 - 0.9 * level, 1 + 0.9 * level
    negative = negative.view(-1, 1, 1, 1)
    # both weights are float64 in Python and rounded to float32 here, as in torchvision: exact integers round down alike
    own, rest = torch.where(negative, weaker, stronger), torch.where(negative, 1 - weaker, 1 - stronger)
    return (own * images.float() + rest * other.float()).clamp(0, 255).to(torch.uint8)


def _brightness(images: Tensor, level: float, negative: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images[:, :1]), level, negative)


def _color(images: Tensor, level: float, negative: Tensor) -> Tensor:
    return _blend(images, _to_grey(images), level, negative)


def _contrast(images: Tensor, level: float, negative: Tensor) -> Tensor:
    total = _to_grey(images).sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64)
    return _blend(images, total.float() / images[0, 0].numel(), level, negative)


def _sharpness(images: Tensor, level: float, negative: Tensor) -> Tensor:
    """Blend with a 3 x 3 blur (centre 5, others 1, divided by 13); the border stays unchanged."""
    x = images.int()
    height, width = images.shape[-2:]
    total = 4 * x[..., 1:-1, 1:-1]
    for dy in range(3):
        for dx in range(3):
            total = total + x[..., dy : height - 2 + dy, dx : width - 2 + dx]
    blurred = images.clone()
    blurred[..., 1:-1, 1:-1] = (total.float() / 13).round().to(torch.uint8)
    return _blend(images, blurred, level, negative)


def _posterize(images: Tensor, level: float, negative: Tensor) -> Tensor:
    lowest = 1 << round(4 * level)
    return torch.bitwise_and(images, 256 - lowest)


def _solarize(images: Tensor, level: float, negative: Tensor) -> Tensor:
    return torch.where(images >= 255 * (1 - level), 255 - images, images)


def _auto_contrast(images: Tensor, level: float, negative: Tensor) -> Tensor:
    low = images.amin(dim=(2, 3), keepdim=True).float()
    high = images.amax(dim=(2, 3), keepdim=True).float()
    flat = low == high
    scale = torch.where(flat, torch.ones_like(low), 255 / (high - low))
    return ((images.float() - torch.where(flat, 0, low)) * scale).clamp(0, 255).to(torch.uint8)


def _equalize(images: Tensor, level: float, negative: Tensor) -> Tensor:
    """Equalise the histogram of every channel, by the integer rule of Pillow's `ImageOps.equalize`."""
    values = images.flatten(2).long()
    histogram = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, values, torch.ones_like(values))
    brightest = values.amax(dim=2, keepdim=True)
    step = (values.shape[2] - histogram.gather(2, brightest)) // 255
    table = (histogram.cumsum(2) - histogram + step // 2) // step.clamp(min=1)
    equal = table.clamp(0, 255).gather(2, values).to(torch.uint8).view(images.shape)
    return torch.where(step[..., None] == 0, images, equal)


_COLOR_OPERATIONS: dict[str, Callable[[Tensor, float, Tensor], Tensor]] = {
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
}
