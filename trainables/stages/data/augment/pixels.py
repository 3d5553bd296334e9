"""Read pixels of a batch at per-image positions (B images, C channels, H x W pixels)."""

import torch
from torch import Tensor

from trainables.stages.models.devices.accelerator import is_gpu


def send(rows: Tensor, device: torch.device) -> Tensor:
    """Copy rows to a device, without waiting for a GPU to finish its work, as a plain copy from the host would."""
    # only towards a GPU: a copy to the host that does not wait could be read before it is complete
    return rows.to(device, non_blocking=is_gpu(device))


def pick(images_BCHW: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """Pick pixels by position: output pixel (y, x) of image b is its pixel (ys[b, y, x], xs[b, y, x]), or 0 outside.

    `ys` and `xs` are int64 and broadcast to BHW.
    """
    batch, channels, height, width = images_BCHW.shape
    inside = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
    flat = (ys.clamp(0, height - 1) * width + xs.clamp(0, width - 1)).expand(batch, height, width)
    flat = flat.reshape(batch, 1, height * width).expand(-1, channels, -1)
    return images_BCHW.flatten(2).gather(2, flat).view(images_BCHW.shape) * inside[:, None]


def pick_bilinear(images_BCHW: Tensor, ys_BH: Tensor, xs_BW: Tensor) -> Tensor:
    """Interpolate bilinearly at fractional rows and columns inside the image; float32, on the images' scale.

    Each row is stretched first, then rows are blended, instead of gathering four neighbours of every output pixel.
    """
    batch, channels, height, width = images_BCHW.shape
    top, left = ys_BH.floor(), xs_BW.floor()
    down, right = (ys_BH - top)[:, None, :, None], (xs_BW - left)[:, None, None, :]
    columns = [(left.long() + step).clamp(max=width - 1)[:, None, None, :] for step in (0, 1)]
    rows = [(top.long() + step).clamp(max=height - 1)[:, None, :, None] for step in (0, 1)]
    near, far = (images_BCHW.gather(3, column.expand(batch, channels, height, -1)) for column in columns)
    stretched = near * (1 - right) + far * right
    upper, lower = (stretched.gather(2, row.expand(batch, channels, -1, stretched.shape[3])) for row in rows)
    return upper * (1 - down) + lower * down


def resize(images_BCHW: Tensor, size: int, box_B4: Tensor | None = None) -> Tensor:
    """Resize a box of each image to `size` x `size`: bilinear, float32 on the images' scale.

    Enlarging equals Pillow's bilinear filter before it rounds to integers; reducing is not antialiased.

    Args:
        box_B4: top, left, height, width; None takes the whole image.
    """
    side = images_BCHW.shape[-1]
    if box_B4 is None and side == size:
        return images_BCHW.float()
    line = torch.arange(size, device=images_BCHW.device) + 0.5
    if box_B4 is None:  # Python numbers need no copy to a GPU
        places = (line * (side / size) - 0.5).clamp(0, side - 1.0).expand(len(images_BCHW), size)
        return pick_bilinear(images_BCHW, places, places)
    top, left, height, width = box_B4[:, :, None].unbind(1)
    # clamped to the box, so that pixels outside have no influence, as if the crop had been cut out before
    ys = torch.minimum((line * (height / size) - 0.5).clamp(min=0), height - 1.0) + top
    xs = torch.minimum((line * (width / size) - 0.5).clamp(min=0), width - 1.0) + left
    return pick_bilinear(images_BCHW, ys, xs)
