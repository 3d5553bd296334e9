"""Reading pixels of a batch at per-image positions (B images, C channels, H x W pixels)."""

from torch import Tensor


def pick(images_BCHW: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """Output pixel (y, x) of image b is its pixel (ys[b, y, x], xs[b, y, x]); zero where that lies outside.

    `ys` and `xs` are int64 and broadcast to BHW.
    """
    batch, channels, height, width = images_BCHW.shape
    inside = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
    flat = (ys.clamp(0, height - 1) * width + xs.clamp(0, width - 1)).expand(batch, height, width)
    flat = flat.reshape(batch, 1, height * width).expand(-1, channels, -1)
    return images_BCHW.flatten(2).gather(2, flat).view(images_BCHW.shape) * inside[:, None]


def pick_bilinear(images_BCHW: Tensor, ys_BH: Tensor, xs_BW: Tensor) -> Tensor:
    """Bilinear pixels at fractional rows and columns inside the image; float32, the scale of `images_BCHW`.

    Every row is stretched first, then rows are mixed: two gathers instead of the four of pixel by pixel.
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
