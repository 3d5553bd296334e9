"""kd_prune.py with a part taken out that no flag takes out; an arm of time_to_front.py.

    python tests/benchmarks/without.py bank|store|actors FLAGS_OF_KD_PRUNE...

bank: the teacher runs on every batch of every trial. store: no trial finds another's student or recovery. actors: every
trial starts a process of its own.
"""

import dataclasses
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from sweeps import kd_prune
from sweeps.running import trials
from sweeps.running.tune import tuning
from trainables.stages.models.placement import layout, move
from trainables.stages.models.stored import load_model
from trainables.stages.pruning import recovery
from trainables.stages.training import lessons, student
from trainables.store.results import Store
from trainables.trials.candidate import CandidateTrial

PARTS = ("bank", "store", "actors")
PRIVATE_STAGES = ("student", "recovery")


class PrivateStore(Store):
    """Shared, but for the stages of a trial's own training."""

    def __init__(self, shared: Path, own: Path) -> None:
        super().__init__(shared)
        self._own = Store(own)

    def obtain(self, key: Any, compute: Any) -> Generator[Any, None, Path]:
        """As the store's."""
        if key.stage in PRIVATE_STAGES:
            return (yield from self._own.obtain(key, compute))
        return (yield from super().obtain(key, compute))


class LiveTeacher:
    """In the place of stored soft labels: the teacher's logits of the pixels at hand."""

    def __init__(self, teacher: Any, dataset: Any, images: Any, augment: Any, store: Any, **_: Any) -> None:
        self._network, self._images = load_model(teacher), images
        move(self._network, images.mean.device, image_size=dataset.image_size)
        self.pixels: Any = None

    def open(self, view: int, turn: Any) -> None:
        """Nothing is stored."""

    def __call__(self, view: int, index: Any) -> Any:
        with torch.no_grad():
            return self._network(self._images.normalise(self.pixels, layout(self._network)))


class LiveDistillation(lessons.Distillation):
    """Shows the teacher what the student sees."""

    def __init__(self, config: Any, soft_labels: Any) -> None:
        super().__init__(config, soft_labels)
        self._live = soft_labels

    def __call__(self, logits_BC: Any, batch: Any) -> Any:
        self._live.pixels = batch.pixels
        return super().__call__(logits_BC, batch)


class WithoutStore(CandidateTrial):
    """A trial with a store of its own for what it trains."""

    def begin(self, config: Any, place: Any) -> Any:
        """As a candidate's."""
        own = PrivateStore(place.store.root, Path(self.config["trial_dir"]) / "store")
        return super().begin(config, dataclasses.replace(place, store=own))


class WithoutBank(CandidateTrial):
    """A trial with a live teacher."""

    def begin(self, config: Any, place: Any) -> Any:
        """As a candidate's."""
        student.SoftLabels = LiveTeacher
        for stage in (student, recovery):
            stage.Distillation = LiveDistillation
        return super().begin(config, place)


def main(words: list[str]) -> int:
    """The command line; the exit code is kd_prune.py's."""
    part, *flags = words
    if part == "actors":
        with_reuse = tuning.tune.TuneConfig
        tuning.tune.TuneConfig = lambda **settings: with_reuse(**settings | {"reuse_actors": False})
    else:
        assert trials.CandidateTrial is CandidateTrial
        trials.CandidateTrial = {"store": WithoutStore, "bank": WithoutBank}[part]
    return kd_prune.main(flags)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
