"""Augment batches as a pure function of (data seed, epoch, sample), on the device that holds the images.

All random numbers of an epoch are drawn once, one row per sample, so the view of sample i never depends on its batch,
the number of workers or the device's generator. Teacher and student see the same pixels in the same epoch ("consistent
teaching", arXiv:2106.05237), and the teacher's logits can be stored.

Pixels go only through integer sums, gathers and elementwise operations, so results are equal bit for bit for any batch
size. Shape legend: N samples, B batch, C = 3 channels, H = W = pixels of a side.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.config.candidate import AugmentConfig
from trainables.stages.data.augment import randaugment
from trainables.stages.data.augment.draws import draw_epoch
from trainables.stages.data.augment.pixels import pick, resize, send
from trainables.stages.data.on_device import Images
from trainables.stages.data.streaming import Streamed


class Views:
    """The augmented views of all samples in one epoch.

    Order of operations: RandAugment on uint8, crop, flip, resizing to `output_size`, Mixup.

    Args:
        config: the augmentations.
        num_samples: N, the length of the training split.
        unlabeled: how many of them, the last ones, have no label; Mixup mixes a label with none but another label.
        epoch: the epoch of the views, >= 0.
        image_size: pixels of a side of the stored images.
        output_size: pixels of a side of the views; None takes `image_size`.
        device: where views are computed; None takes the device of the images.
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        num_samples: int,
        unlabeled: int = 0,
        epoch: int,
        image_size: int,
        output_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if config.crop == "padded" and config.crop_padding >= image_size:
            raise ValueError(
                f"`crop_padding` must be less than the side of the stored images, but got"
                f" crop_padding={config.crop_padding} and images of {image_size} pixels."
            )
        self.config = config
        self.image_size, self.output_size = image_size, output_size or image_size
        self.num_samples = num_samples
        self.device = device if device is None else torch.device(device)
        drawn = draw_epoch(config, num_samples, epoch, image_size, unlabeled=unlabeled)
        self._host = {name: torch.from_numpy(rows) for name, rows in drawn.items()}
        self._drawn, self._drawn_for = self._host, torch.device("cpu")
        self._pairs: dict[int, Tensor] = {}

    def batch(self, images_N3HW: Tensor | Streamed, index_B: Tensor) -> Tensor:
        """Compute the views of samples `index_B`: float32 in [0, 1], B3HW, H = W = output_size, not normalised.

        `images_N3HW` (uint8) holds all samples, on any device or memory-mapped. With Mixup the view is
        `lam * view(i) + (1 - lam) * view(partner)` of two augmented, unmixed views; see `partners`. An index on the CPU
        avoids a synchronisation with the GPU.
        """
        assert len(images_N3HW) == self.num_samples and images_N3HW.shape[-1] == self.image_size, images_N3HW.shape
        device = self.device or images_N3HW.device
        view = self._augment(images_N3HW, index_B, device)
        if self.config.mixup_alpha is None:
            return view
        other = self._augment(images_N3HW, self._partner(index_B), device)
        lam = self._draws_on(device)["lam"][send(index_B, device)].view(-1, 1, 1, 1)
        return lam * view + (1 - lam) * other

    def partners(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sample that each one is mixed with (int64, B) and its own weight `lam` (float32, B).

        Without Mixup these are itself and 1. Targets mix in the same way: `lam * y[i] + (1 - lam) * y[partner]`.
        """
        index_B = send(index_B, self.device or index_B.device)
        if self.config.mixup_alpha is None:
            return index_B, torch.ones(len(index_B), device=index_B.device)
        drawn = self._draws_on(index_B.device)
        return drawn["partner"][index_B], drawn["lam"][index_B]

    def announce(self, images_N3HW: Tensor | Streamed, batches: Sequence[Tensor]) -> None:
        """Announce the index tensors of the next calls of `batch`, so that streamed images are read ahead."""
        if isinstance(images_N3HW, Streamed):
            mixed = self.config.mixup_alpha is not None
            self._pairs = {id(index): self._host["partner"][index] for index in batches} if mixed else {}
            wanted = ((index, self._pairs[id(index)]) if mixed else (index,) for index in batches)
            images_N3HW.announce(itertools.chain.from_iterable(wanted))

    def _partner(self, index_B: Tensor) -> Tensor:
        announced = self._pairs.get(id(index_B))
        return self.partners(index_B)[0] if announced is None else announced

    def _draws_on(self, device: torch.device) -> dict[str, Tensor]:
        """Return the epoch's random numbers on a device; they are copied there once."""
        if device.type == "cpu":
            return self._host
        if self._drawn_for != device:
            self._drawn = {name: send(rows, device) for name, rows in self._host.items()}
            self._drawn_for = device
        return self._drawn

    def _augment(self, images_N3HW: Tensor | Streamed, index_B: Tensor, device: torch.device) -> Tensor:
        if isinstance(images_N3HW, Tensor):
            images = send(images_N3HW[send(index_B, images_N3HW.device)], device)
        else:
            images = send(images_N3HW[index_B], device)
        if self.config.randaugment_magnitude is not None:
            # operations are sorted by kind on the host: counting them on a GPU would wait for all its earlier work
            operations, negative = (self._host[name][index_B.cpu()] for name in ("operations", "negative"))
            images = randaugment.apply(images, operations, negative, self.config.randaugment_magnitude)
        index = send(index_B, device)
        own = {name: rows[index] for name, rows in self._draws_on(device).items()}
        if self.config.crop == "resized":
            return _to_unit(_flip(resize(images, self.output_size, own["box"]), own["flip"]))
        if self.config.crop == "padded" and self.config.crop_padding:
            view = _crop_and_flip(images, own["shift"], own["flip"])
        else:
            view = _flip(images, own["flip"])
        return _to_unit(view if self.output_size == self.image_size else resize(view, self.output_size))


def make_views(images: Images, config: AugmentConfig, *, epoch: int) -> Views:
    """Make the views of a data set's training images, in the size that the networks take."""
    return Views(
        config,
        num_samples=len(images.train_labels),
        unlabeled=images.unlabeled,
        epoch=epoch,
        image_size=images.train_images.shape[-1],
        output_size=images.image_size,
    )


def targets(views: Views, images: Images, index_B: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what the labels say of samples `index_B`, and which samples have one (bool, B; None: all of them).

    The first are class indices (B), or under Mixup the two labels' shares as probabilities (BC). For a sample without a
    label they are those of class 0, and mean nothing.
    """
    labels = images.train_labels[index_B]
    labelled = labels >= 0 if images.unlabeled else None
    if views.config.mixup_alpha is None:
        return labels.clamp(min=0) if images.unlabeled else labels, labelled
    partner, share = views.partners(index_B)
    other = images.train_labels[partner]  # has a label if the sample has one
    one_hot, other_hot = (F.one_hot(classes.clamp(min=0), images.num_classes).float() for classes in (labels, other))
    return share[:, None] * one_hot + (1 - share[:, None]) * other_hot, labelled


def _crop_and_flip(images_BCHW: Tensor, shift_B2: Tensor, flip_B: Tensor) -> Tensor:
    """Pad with zeros, crop at an offset, and mirror where `flip_B` is true, all in one gather."""
    size = images_BCHW.shape[-1]
    line = torch.arange(size, device=images_BCHW.device)
    columns = torch.where(flip_B[:, None], size - 1 - line, line) + shift_B2[:, 1:]
    return pick(images_BCHW, (line + shift_B2[:, :1])[:, :, None], columns[:, None, :])


def _flip(images_BCHW: Tensor, flip_B: Tensor) -> Tensor:
    return torch.where(flip_B.view(-1, 1, 1, 1), images_BCHW.flip(-1), images_BCHW)


def _to_unit(images: Tensor) -> Tensor:
    return torch.div(images, 255)
