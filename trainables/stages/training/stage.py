"""Run one training stage: epochs, with pruned weights masked, and the trained network in the store."""

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from trainables.records.stages import EpochRecord, ModelRecord, read_model
from trainables.stages.models.stored import write_model
from trainables.stages.training.loop import Lesson, Loop, train
from trainables.stages.workspace import Bench
from trainables.store.results import Key

Epochs = Generator[EpochRecord, None, ModelRecord]
"""A running stage: yields its epochs, returns the network in the store."""
Made = Generator[EpochRecord, None, tuple[nn.Module, tuple[EpochRecord, ...]]]
"""A network in training: yields its epochs, returns the network and its whole curve."""
Curve = Generator[EpochRecord, None, tuple[EpochRecord, ...]]
Masks = Mapping[str, Tensor]
"""Parameter name -> where its weights must stay zero, bool of the weight's shape."""
NO_MASKS: Masks = MappingProxyType({})


def obtain_model(bench: Bench, key: Key, name: str, make: Callable[[Path], Made]) -> Epochs:
    """Find the network under `key` in the store, or train it and store it; yield the epochs of the training.

    Args:
        name: the model's name for `build_model`.
        make: trains the network; gets the stage's folder, which may hold the state of an interrupted attempt.
    """

    def compute(folder: Path) -> Generator[EpochRecord, None, None]:
        model, curve = yield from make(folder)
        write_model(model, folder, key=key, name=name, dataset=bench.dataset, curve=curve)

    return read_model((yield from bench.place.store.obtain(key, compute)), name)


def fit(bench: Bench, model: nn.Module, loop: Loop, lesson: Lesson, folder: Path, masks: Masks = NO_MASKS) -> Curve:
    """Train in place as `train` does, pausing while a measurement runs on the node; masked weights stay zero."""
    after_step = (lambda: apply_masks(model, masks)) if masks else None
    place = bench.place
    turn, graphs = place.device_lock().shared, place.graphs
    return train(model, loop, bench.images, lesson, folder, after_step=after_step, turn=turn, graphs=graphs)


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set the masked weights to zero again."""
    for name, zero in masks.items():
        model.get_parameter(name).masked_fill_(zero, 0)
