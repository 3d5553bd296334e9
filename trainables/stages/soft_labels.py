"""Teacher logits of every view, computed once and shared by all trials.

A view's pixels are a pure function of (data_seed, view, sample), Mixup included, so the teacher says the same about
them in every trial. The bank holds them as float16 in the store, one file [sample, class] a view (1 MB for CIFAR-10),
filled by whoever needs the view first. It is exact where one fixed set of logits for augmented images is not: teacher
and student see the same pixels ("consistent teaching", arXiv:2106.05237, section 3).

Shape letters: B batch, C classes.
"""

import time
from collections.abc import Generator
from pathlib import Path
from typing import Never

import numpy as np
import torch
from torch import Tensor

from trainables.configs import AugmentConfig, TrainingConfig
from trainables.records import DatasetRecord, ModelRecord, to_json, write_text
from trainables.stages.augment import Views
from trainables.stages.compute import autocast, layout, move
from trainables.stages.tensors import Images
from trainables.stages.training import Turn
from trainables.stages.workspace import load_model
from trainables.store import Key, Store, stage_key

VERSION = 2
FILL_BATCH = 256


def soft_labels_key(
    teacher: ModelRecord, dataset: DatasetRecord, augment: AugmentConfig, training: TrainingConfig, *, view: int
) -> Key:
    """Where a view's logits lie in the store; of `training` only what the teacher's forward pass depends on counts."""
    training = training.on("cpu")
    return stage_key(
        "soft_labels",
        version=VERSION,
        parents=[dataset.fingerprint, teacher.key],
        view=view,
        train_precision=training.train_precision,
        deterministic=training.deterministic,
        **vars(augment),
    )


class SoftLabels:
    """The bank of one teacher on one data set under one augmentation and precision."""

    def __init__(
        self,
        teacher: ModelRecord,
        dataset: DatasetRecord,
        images: Images,
        augment: AugmentConfig,
        store: Store,
        *,
        training: TrainingConfig,
    ) -> None:
        self._teacher, self._dataset, self._images = teacher, dataset, images
        self._augment, self._store, self._training = augment, store, training
        self._view: int | None = None
        self._logits_NC = torch.empty(0)

    def open(self, view: int, turn: Turn) -> None:
        """Have a view's logits at hand, computing them if nobody has; waits while somebody else does."""
        if view == self._view:
            return
        key = soft_labels_key(self._teacher, self._dataset, self._augment, self._training, view=view)
        filling = self._store.obtain(key, lambda folder: self._fill(view, folder, turn))
        try:
            next(filling)
        except StopIteration as end:
            logits = np.load(end.value / "logits.npy")
        self._logits_NC = torch.from_numpy(logits).to(self._images.mean.device)
        self._view = view

    def __call__(self, view: int, index: Tensor) -> Tensor:
        """The teacher's logits [B, C], float32, for samples of the opened view."""
        assert view == self._view, f"view {view} was not opened"
        return self._logits_NC[index].float()

    @torch.no_grad()
    def _fill(self, view: int, folder: Path, turn: Turn) -> Generator[Never, None, None]:
        started = time.perf_counter()
        images = self._images
        count = len(images.train_labels)
        device, size = images.mean.device, images.train_images.shape[-1]
        network = load_model(self._teacher)
        move(network, device, image_size=size)
        views = Views(self._augment, num_samples=count, epoch=view, image_size=size)
        logits_NC = torch.empty((count, images.num_classes), dtype=torch.float16, device=device)
        batches = torch.arange(count).split(FILL_BATCH)
        views.announce(images.train_images, batches)
        for index in batches:
            with turn(), autocast(device, self._training):
                pixels = views.batch(images.train_images, index)
                logits_NC[index[0] : index[-1] + 1] = network(images.normalise(pixels, layout(network))).half()
        np.save(folder / "logits.npy", logits_NC.cpu().numpy())
        write_text(folder / "record.json", to_json({"view": view, "seconds": time.perf_counter() - started}))
        yield from ()
