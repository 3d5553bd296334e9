"""A teacher on CIFAR-10 in the fewest seconds, and its students: distilled, pruned, and without a teacher.

    python tests/benchmarks/teacher_cifar10.py                                   # one GPU; goal: teacher 94 % on test
    python tests/benchmarks/teacher_cifar10.py --dataset folder:cifar10-jpeg     # where the archive is not to be had
    python tests/benchmarks/teacher_cifar10.py --device cpu --steps 3 --dataset digits

Prints test accuracy (10,000 images, read once a network) and seconds of training (validation after every epoch
included, data preparation not) of: teacher, dense student with distillation, that student with 30 % of its channels
removed and recovered, and the dense and the pruned student taught by labels alone with the same number of epochs.
Students share one seed.
"""

import argparse
import dataclasses
import importlib.util
import os
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

import torch

from trainables.config.candidate import Candidate, CandidateConfig
from trainables.config.training import TRAIN_PRECISIONS
from trainables.records.stages import ModelRecord
from trainables.stages.data import prepared
from trainables.stages.models.placement import move
from trainables.stages.models.stored import load_model
from trainables.stages.pruning.recovery import recover
from trainables.stages.training.loop import evaluate
from trainables.stages.training.student import train_student
from trainables.stages.training.teacher import train_teacher
from trainables.stages.workspace import Bench, Workspace
from trainables.store.results import Store

Result = TypeVar("Result")
RATIO = 0.3


def config_of(flags: argparse.Namespace) -> CandidateConfig:
    """ResNet-18 by Nesterov SGD, MobileNetV3-Small by AdamW: rates and weight decay are common ones, not tuned here."""
    config = CandidateConfig().replace(
        dataset=flags.dataset,
        batch_size=flags.batch_size,
        val_fraction=0.02,
        label_smoothing=0.1,
        teacher_epochs=flags.teacher_epochs,
        teacher_optimizer="sgd",
        teacher_learning_rate=flags.teacher_learning_rate,
        teacher_weight_decay=5e-4,
        student_epochs=flags.student_epochs,
        recovery_epochs=flags.recovery_epochs,
        learning_rate=2e-3,
        weight_decay=0.05,
        flip=flags.dataset != "digits",
        seed=flags.seed,
        teacher_seed=flags.seed,
        train_precision=flags.train_precision,
    )
    if flags.steps:
        config = config.replace(
            train_limit=flags.steps * flags.batch_size, teacher_epochs=1, student_epochs=1, recovery_epochs=1
        )
    return config


def test_accuracy(bench: Bench, model: ModelRecord) -> float:
    """Share of the test images that the network gets right."""
    pixels, labels = prepared.load(bench.dataset, "test")
    device = bench.images.mean.device
    shown = dataclasses.replace(
        bench.images,
        val_images=torch.from_numpy(pixels.copy()).to(device),
        val_labels=torch.from_numpy(labels.copy()).to(device),
    )
    network = load_model(model)
    move(network, device, image_size=bench.dataset.image_size)
    return evaluate(network, shown, bench.candidate.training)[1]


def end(stage: Generator[Any, None, Result]) -> Result:
    """Run a stage to its end, a dot an epoch."""
    while True:
        try:
            next(stage)
            print(".", end="", file=sys.stderr, flush=True)
        except StopIteration as finished:
            result: Result = finished.value
            return result


def main(words: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--teacher-epochs", type=int, default=30)
    parser.add_argument("--teacher-learning-rate", type=float, default=0.1)
    parser.add_argument("--student-epochs", type=int, default=60)
    parser.add_argument("--recovery-epochs", type=int, default=15)
    parser.add_argument("--train-precision", choices=TRAIN_PRECISIONS, help="default: amp on a GPU, fp32 on a CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="a short run: one epoch of that many steps in every stage")
    flags = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        compare(flags, Path(folder))
    return 0


def compare(flags: argparse.Namespace, folder: Path) -> None:
    """Train all of them and print a line each."""
    config = config_of(flags)
    place = Workspace(
        store=Store(folder / "store"),
        data=config.data,
        data_dir=flags.data_dir,
        device=flags.device,
        threads=os.cpu_count() or 1,
        lock_dir=folder / "leases",
    )
    place.enter()

    def resolved(settings: CandidateConfig) -> Candidate:
        return settings.resolve(place.dataset(), device=flags.device)

    bench = Bench.of(resolved(config), place)
    what = torch.cuda.get_device_name() if flags.device == "cuda" else "CPU"
    print(
        f"{what}, {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.2f}, torch {torch.__version__},"
        f" {bench.candidate.training.train_precision}, seed {flags.seed}, n = 1"
    )
    taught_by = end(train_teacher(bench))

    def tell(name: str, model: ModelRecord, before_s: float = 0.0) -> None:
        accuracy = test_accuracy(bench, model)
        seconds = before_s + model.train_time_s
        size = f"{model.num_params / 1e6:6.2f} M parameters"
        print(f"{name:44} test accuracy {100 * accuracy:6.2f} %  {seconds:8.1f} s  {size}", flush=True)

    tell(f"teacher {taught_by.model_name}, {config.teacher.teacher_epochs} epochs", taught_by)
    for how, alpha in (("distilled", 0.9), ("labels alone", 0.0)):
        own = dataclasses.replace(bench, candidate=resolved(config.replace(alpha=alpha, pruning_ratio=RATIO)))
        dense = end(train_student(own, taught_by))
        tell(f"student, {how}, dense", dense)
        if importlib.util.find_spec("torch_pruning") is None:
            print(f"student, {how}, pruned: torch-pruning is not installed", flush=True)
            continue
        pruned = end(recover(own, taught_by, dense, channel_ratio=RATIO))
        tell(f"student, {how}, {RATIO:.0%} of channels removed", pruned, dense.train_time_s)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
