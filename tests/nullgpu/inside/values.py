"""Every training stage gives the same bits on the stand-in as on the CPU, where the CPU computes both."""

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import null_device
import pytest
import torch
from torch import Tensor

from trainables.config.candidate import CandidateConfig
from trainables.config.training import TrainingConfig
from trainables.records.stages import EpochRecord, ModelRecord
from trainables.stages.data.on_device import load_images
from trainables.stages.export.qat import train_quantised
from trainables.stages.models import placement
from trainables.stages.pruning import criteria
from trainables.stages.pruning.cuts import plan_cut
from trainables.stages.pruning.recovery import recover
from trainables.stages.training.student import train_student
from trainables.stages.training.teacher import train_teacher
from trainables.stages.workspace import Bench, Workspace
from trainables.store.results import Store

BASE: dict[str, Any] = {
    "dataset": "digits",
    "flip": False,
    "train_limit": 64,
    "batch_size": 32,
    "train_precision": "fp32",
    "teacher_model": "alexnet_small",
    "student_model": "alexnet_small",
    "teacher_epochs": 1,
    "student_epochs": 1,
    "recovery_epochs": 1,
    "qat_epochs": 1,
    "pruning_ratio": 0.3,
    "precision": "int8_qat",
    "learning_rate": 1e-3,
    "teacher_learning_rate": 1e-3,
}
CASES: dict[str, dict[str, Any]] = {
    "augmented, two cuts": {
        "crop": "resized",
        "randaugment_magnitude": 9,
        "mixup_alpha": 0.2,
        "pruning_steps": 2,
        "recovery_epochs": 2,
    },
    "taylor, global": {
        "student_model": "resnet8",
        "pruning_criterion": "taylor",
        "pruning_scope": "global",
        "kd_loss": "dkd",
        "deterministic": True,
    },
    "amp, zeroed": {
        "train_precision": "amp",
        "precision": "fp32",
        "pruning_method": "nm_2_4",
        "teacher_optimizer": "sgd",
    },
}
Curve = list[tuple[float, float, float]]
Weights = dict[str, Tensor]


def run(stage: Generator[EpochRecord, None, ModelRecord]) -> tuple[ModelRecord, Curve]:
    curve: Curve = []
    while True:
        try:
            epoch = next(stage)
        except StopIteration as end:
            return end.value, curve
        curve.append((epoch.train_loss, epoch.val_loss, epoch.val_accuracy))


def make_bench(device: str, changes: dict[str, Any], root: Path) -> Bench:
    config = CandidateConfig().replace(**BASE | changes)
    settings = {"data": config.data, "data_dir": root / "data", "device": device, "threads": 1}
    place = Workspace(store=Store(root / device / "store"), lock_dir=root / device / "locks", **settings)
    place.enter()
    load_images.cache_clear()
    return Bench.of(config.resolve(place.dataset(), device=device), place)


def train_all(device: str, changes: dict[str, Any], root: Path) -> tuple[dict[str, Curve], dict[str, Weights]]:
    """Run all stages that train; returns their curves, and their weights."""
    bench = make_bench(device, changes, root)
    prune = bench.candidate.prune
    with torch.random.fork_rng(devices=[]):
        ratio = prune.pruning_ratio
        teacher, taught = run(train_teacher(bench))
        student, distilled = run(train_student(bench, teacher))
        if prune.shape_needs_weights:
            plan_cut(bench, student, channel_ratio=ratio)
        pruned, recovered = run(recover(bench, teacher, student, channel_ratio=ratio))
        curves = {"teacher": taught, "student": distilled, "recovery": recovered}
        models = {"teacher": teacher, "student": student, "recovery": pruned}
        if bench.candidate.export.precision == "int8_qat":
            models["qat"], curves["qat"] = run(train_quantised(bench, teacher, pruned))
    return curves, {name: torch.load(model.folder / "weights.pt") for name, model in models.items()}


@pytest.mark.parametrize("name", CASES)
def test_every_stage_gives_the_bits_of_the_cpu(name: str, tmp_path: Path) -> None:
    results = {}
    for device in ("cpu", "cuda"):
        with null_device.computing() if device == "cuda" else contextlib.nullcontext():
            results[device] = train_all(device, CASES[name], tmp_path)
        torch.use_deterministic_algorithms(False)
    (curves, weights), (curves_there, weights_there) = results["cpu"], results["cuda"]
    assert not null_device.not_on_cpu
    assert all(curves.values()), "every stage trains"
    assert curves_there == curves
    for stage, tensors in weights.items():
        assert tensors.keys() == weights_there[stage].keys()
        for parameter, value in tensors.items():
            assert torch.equal(weights_there[stage][parameter], value), f"{stage}: {parameter}"


def test_gradients_for_a_cut_are_computed_on_the_gpu_as_its_training_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the student comes from the store, no epoch of this process has set precision and determinism before."""
    changes = CASES["taylor, global"] | {"train_limit": 40}
    seen: list[tuple[str, bool, bool]] = []
    cross_entropy = criteria.F.cross_entropy

    def note(logits: Tensor, *given: Any, **named: Any) -> Tensor:
        if logits.requires_grad and named.get("reduction") == "sum":
            deterministic = torch.are_deterministic_algorithms_enabled()
            seen.append((logits.device.type, deterministic, torch.backends.cuda.matmul.allow_tf32))
        return cross_entropy(logits, *given, **named)

    with null_device.computing():
        bench = make_bench("cuda", changes, tmp_path)
        teacher, _ = run(train_teacher(bench))
        student, _ = run(train_student(bench, teacher))
        placement.set_up_kernels(torch.device("cuda"), TrainingConfig(train_precision="amp"))  # of another trial
        monkeypatch.setattr(criteria.F, "cross_entropy", note)
        plan_cut(bench, student, channel_ratio=0.3)
        planned = list(seen)
        placement.set_up_kernels(torch.device("cuda"), TrainingConfig(train_precision="amp"))
        run(recover(bench, teacher, student, channel_ratio=0.3))
    assert planned and len(seen) > len(planned)
    assert set(seen) == {("cuda", True, False)}
