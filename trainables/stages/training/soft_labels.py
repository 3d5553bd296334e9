"""Compute teacher logits of every view once and share them between all trials.

A view's pixels are a pure function of (data_seed, view, sample), Mixup included, so the teacher's logits are the same
in every trial. The bank keeps them in the store as float16, one file [sample, class] per view (1 MB for CIFAR-10). The
first trial that needs a view fills it; a trial that would have to wait fills a later view meanwhile, so that trials
that start together fill the bank together. Unlike one fixed set of logits for augmented images, the bank is exact:
teacher and student see the same pixels ("consistent teaching", arXiv:2106.05237, section 3).

Shape letters: N samples, B batch, C classes.
"""

import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trainables.config.candidate import AugmentConfig, Candidate
from trainables.config.training import TrainingConfig
from trainables.files import write_text
from trainables.layout import RECORD
from trainables.records.encoding import to_json
from trainables.records.stages import DatasetRecord, ModelRecord
from trainables.stages.data.augment.views import make_views
from trainables.stages.data.on_device import Images
from trainables.stages.models.placement import autocast, layout, move
from trainables.stages.models.stored import load_model
from trainables.stages.training.loop import Turn
from trainables.stages.workspace import Bench
from trainables.store.results import Key, stage_key

VERSION = 2
FILL_BATCH = 256


def soft_labels_key(candidate: Candidate, dataset: DatasetRecord, teacher: ModelRecord, *, view: int) -> Key:
    """The store key of a view's logits; of the training settings, only those of the teacher's forward pass count."""
    return stage_key(
        "soft_labels",
        version=VERSION,
        parents=[dataset.fingerprint, teacher.key],
        view=view,
        train_precision=candidate.training.train_precision,
        deterministic=candidate.training.deterministic,
        **candidate.data.unlabeled_key(),
        **vars(candidate.augment),
    )


class SoftLabels:
    """The bank of one teacher on one data set under one augmentation and precision."""

    def __init__(self, bench: Bench, teacher: ModelRecord, *, until: int) -> None:
        """Compute nothing yet; later, fill ahead only views below `until`."""
        self._bench, self._teacher, self._store, self._until = bench, teacher, bench.place.store, until
        self._view: int | None = None
        self._logits_NC = torch.empty(0)

    def open(self, view: int, turn: Turn) -> None:
        """Load a view's logits, or compute them first; wait while another trial computes them."""
        if view == self._view:
            return
        while self._store.busy(self._key(view)) and (ahead := self._first_free(view + 1)) is not None:
            self._obtain(ahead, turn)
        # mapped, so that all trials of a node share the pages; "c" (copy on write), as torch has no read-only tensors
        logits = np.load(self._obtain(view, turn) / "logits.npy", mmap_mode="c")
        self._logits_NC = torch.from_numpy(logits).to(self._bench.images.mean.device)
        self._view = view

    def __call__(self, view: int, index: Tensor) -> Tensor:
        """The teacher's logits [B, C], float32, for samples of the opened view."""
        assert view == self._view, f"view {view} was not opened"
        return self._logits_NC[index].float()

    def _key(self, view: int) -> Key:
        return soft_labels_key(self._bench.candidate, self._bench.dataset, self._teacher, view=view)

    def _first_free(self, start: int) -> int | None:
        """The first view from `start` that is neither filled nor being filled."""
        keys = ((view, self._key(view)) for view in range(start, self._until))
        return next((view for view, key in keys if self._store.find(key) is None and not self._store.busy(key)), None)

    def _obtain(self, view: int, turn: Turn) -> Path:
        return self._store.once(self._key(view), lambda folder: self._fill(view, folder, turn))

    def _fill(self, view: int, folder: Path, turn: Turn) -> None:
        started, images, candidate = time.perf_counter(), self._bench.images, self._bench.candidate
        network = load_model(self._teacher)
        move(network, images.mean.device, image_size=images.image_size)
        logits_NC = logits_of(network, images, candidate.augment, candidate.training, view=view, turn=turn)
        with turn():  # the GPU is still computing
            logits = logits_NC.cpu().numpy()
        np.save(folder / "logits.npy", logits)
        write_text(folder / RECORD, to_json({"view": view, "seconds": time.perf_counter() - started}))


@torch.no_grad()
def logits_of(
    network: nn.Module,
    images: Images,
    augment: AugmentConfig,
    training: TrainingConfig,
    *,
    view: int,
    turn: Turn = nullcontext,
) -> Tensor:
    """Run a network in evaluation mode over one view of all training images: float16 logits [N, C] on their device.

    With those that have no label.

    Args:
        turn: entered around every batch.
    """
    count, device = len(images.train_labels), images.mean.device
    views = make_views(images, augment, epoch=view)
    logits_NC = torch.empty((count, images.num_classes), dtype=torch.float16, device=device)
    batches = torch.arange(count).split(FILL_BATCH)
    views.announce(images.train_images, batches)
    for index in batches:
        with turn(), autocast(device, training):
            pixels = views.batch(images.train_images, index)
            logits_NC[index[0] : index[-1] + 1] = network(images.normalise(pixels, layout(network))).half()
    return logits_NC
