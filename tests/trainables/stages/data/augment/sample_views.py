"""Small pictures, and the augmented views of them that tests compare."""

import numpy as np
import torch
from torch import Tensor

from trainables.config.candidate import AugmentConfig
from trainables.stages.data.augment.views import Views

NUM_SAMPLES, SIZE = 40, 16
PLAIN = AugmentConfig(flip=False, crop="none")
CONFIGS = {
    "plain": PLAIN,
    "padded": AugmentConfig(),
    "resized": AugmentConfig(crop="resized"),
    "randaugment": AugmentConfig(randaugment_magnitude=17),
    "mixup": AugmentConfig(mixup_alpha=0.8),
    "all": AugmentConfig(crop="resized", randaugment_magnitude=9, mixup_alpha=1.0, data_seed=3),
}


def pictures(n: int, size: int, seed: int = 0) -> Tensor:
    """Blobs and noise in colour: edges, flat parts and both ends of the scale."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(-60, 315, size=(n, 3, size // 4, size // 4)).repeat(4, axis=2).repeat(4, axis=3)
    return torch.from_numpy((coarse + rng.integers(-20, 20, size=coarse.shape)).clip(0, 255).astype(np.uint8))


IMAGES = pictures(NUM_SAMPLES, SIZE)


def views(config: AugmentConfig, epoch: int = 0) -> Views:
    return Views(config, num_samples=NUM_SAMPLES, epoch=epoch, image_size=SIZE)
