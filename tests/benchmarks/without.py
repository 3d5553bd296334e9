"""kd_prune.py with a part taken out that no flag takes out; an arm of time_to_front.py.

    python tests/benchmarks/without.py bank|store|actors FLAGS_OF_KD_PRUNE...

bank: the teacher runs on every batch of every trial. store: no trial finds another's student or recovery. actors: every
trial starts a process of its own.
"""

import argparse
import dataclasses
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from sweeps import kd_prune
from sweeps.running import trials
from sweeps.running.tune import tuning
from trainables.stages.candidate import from_scratch
from trainables.stages.export import qat
from trainables.stages.models.placement import layout, move
from trainables.stages.models.stored import load_model
from trainables.stages.pruning import recovery
from trainables.stages.training import student
from trainables.stages.training.lessons import Distillation
from trainables.stages.training.soft_labels import SoftLabels
from trainables.store.results import Store
from trainables.trials.candidate import CandidateTrial

PARTS = ("bank", "store", "actors")
PRIVATE_STAGES = ("student", "recovery")


class PrivateStore(Store):
    """Shared, but for the stages of a trial's own training."""

    def __init__(self, shared: Path, own: Path) -> None:
        super().__init__(shared)
        self._own = Store(own)
        self.taken: set[str] = set()
        """Stages whose results came from the trial's own store."""

    def obtain(self, key: Any, compute: Any) -> Generator[Any, None, Path]:
        """As the store's."""
        if key.stage in PRIVATE_STAGES:
            self.taken.add(key.stage)
            return (yield from self._own.obtain(key, compute))
        return (yield from super().obtain(key, compute))


class LiveTeacher:
    """In the place of stored soft labels: the teacher's logits of the pixels at hand."""

    def __init__(self, bench: Any, teacher: Any) -> None:
        self._network, self._images = load_model(teacher), bench.images
        move(self._network, self._images.mean.device, image_size=bench.dataset.image_size)
        self.pixels: Any = None

    def open(self, view: int, turn: Any) -> None:
        """Nothing is stored."""

    def __call__(self, view: int, index: Any) -> Any:
        with torch.no_grad():
            return self._network(self._images.normalise(self.pixels, layout(self._network)))


class LiveDistillation(Distillation):
    """Shows the teacher what the student sees."""

    def __init__(self, candidate: Any, live: Any, loop: Any) -> None:
        super().__init__(candidate, live, loop)
        self._live = live

    @classmethod
    def of(cls, bench: Any, teacher: Any, loop: Any) -> Any:
        """The lesson with a live teacher."""
        return cls(bench.candidate, LiveTeacher(bench, teacher), loop)

    def __call__(self, logits_BC: Any, batch: Any) -> Any:
        self._live.pixels = batch.pixels
        return super().__call__(logits_BC, batch)


class WithoutStore(CandidateTrial):
    """A trial with a store of its own for what it trains."""

    def begin(self, task: Any, place: Any) -> Any:
        """As a candidate's.

        Raises:
            RuntimeError: if what it trained came from the shared store after all.
        """
        store = PrivateStore(place.store.root, task.folder / "store")
        record = yield from super().begin(task, dataclasses.replace(place, store=store))
        if shared := set(PRIVATE_STAGES) - store.taken:
            raise RuntimeError(f"the shared store was asked for {', '.join(sorted(shared))}")
        return record


class WithoutBank(CandidateTrial):
    """A trial with a live teacher."""

    def begin(self, task: Any, place: Any) -> Any:
        """As a candidate's."""
        for stage in (student, recovery, from_scratch, qat):
            assert issubclass(stage.Distillation, Distillation)
            stage.Distillation = LiveDistillation
        SoftLabels.open = bank_in_use  # what has not been replaced must not pass for it
        return super().begin(task, place)


def bank_in_use(*_: Any) -> None:
    """In the place of `SoftLabels.open`."""
    raise RuntimeError("a lesson asks the bank of soft labels in spite of the live teacher")


def run_candidates_as(trainable: type[CandidateTrial]) -> list[str]:
    """Have the search run other trials; returns a list that names every Tune run that does."""
    replaced: list[str] = []
    make = trials.tuner

    def with_other(asked: Any, *args: Any, **settings: Any) -> Any:
        assert asked is CandidateTrial, asked
        replaced.append(settings["name"])
        return make(trainable, *args, **settings)

    trials.tuner = with_other
    return replaced


def run_without_reuse() -> list[str]:
    """Have Tune start a process for every trial; returns a list that grows with every Tune run that does."""
    replaced: list[str] = []
    make = tuning.tune.TuneConfig

    def without_reuse(*, reuse_actors: bool, **settings: Any) -> Any:
        assert reuse_actors
        replaced.append("actors")
        return make(**settings, reuse_actors=False)

    tuning.tune.TuneConfig = without_reuse
    return replaced


def main(words: list[str]) -> int:
    """The command line; the exit code is kd_prune.py's, but 1 where it ran nothing without the part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of kd_prune.py")
    asked = parser.parse_args(words)
    other = {"store": WithoutStore, "bank": WithoutBank}
    replaced = run_without_reuse() if asked.part == "actors" else run_candidates_as(other[asked.part])
    code = kd_prune.main(asked.flags)
    if code == 0 and not replaced:
        print(f"kd_prune.py has run nothing without its {asked.part}.", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
