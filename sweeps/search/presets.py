"""Presets: functions that return a `SweepConfig`."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from optuna.distributions import BaseDistribution

from sweeps.search.config import Search, SweepConfig
from sweeps.search.space import default_space, parse
from trainables.config.candidate import (
    TEACHER_ITSELF,
    AugmentConfig,
    CandidateConfig,
    MeasureConfig,
    StudentConfig,
    TeacherConfig,
)
from trainables.config.compression import PruneConfig
from trainables.config.training import TrainingConfig


def default_name(preset: str, identity: Mapping[str, Any]) -> str:
    """A name that depends on the settings alone: the same command resumes its sweep, another one starts anew."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return f"{preset}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


# Beside those of a single candidate; what the first gained is in LOG.md, 2026-11-29, "efficacy.py again", and what the
# second saves in "labels alone".
_SWEEP_DEFAULTS: Mapping[str, Any] = MappingProxyType({"recovery_budget": "time", "kd_anneal": 0.5})


def quick() -> SweepConfig:
    """Small real images and the AlexNet pair on a CPU: a whole sweep in a minute or two, without downloads."""
    base = CandidateConfig(
        augment=augment_for("digits", None),
        training=TrainingConfig(batch_size=64),
        teacher=TeacherConfig(teacher_model="alexnet", teacher_epochs=5, teacher_learning_rate=1e-3),
        student=StudentConfig(student_model="alexnet_small", student_epochs=3, learning_rate=1e-3),
        prune=PruneConfig(recovery_epochs=1),
        measure=MeasureConfig(latency_seconds=1.0),
    )
    space = _space("alexnet_small") | {"learning_rate": parse("learning_rate", "1e-3,3e-3")}
    return SweepConfig(name="quick", search=Search(trials=12, base=base.replace(**_SWEEP_DEFAULTS), space=space))


def cifar10() -> SweepConfig:
    """ResNet-18 to MobileNetV3-Small on CIFAR-10 at 32 pixels; meant for GPUs."""
    base = CandidateConfig().replace(dataset="cifar10", **_SWEEP_DEFAULTS, **vars(augment_for("cifar10", None)))
    return SweepConfig(name="cifar10", search=Search(base=base, space=_space("mobilenet_v3_small")))


# An epoch of few images is a few steps: they get more epochs.
EPOCHS_ON_CORES, MOST_EPOCHS, ENOUGH_STEPS = 30, 120, 600


def on_cores(dataset: str, image_size: int | None) -> SweepConfig:
    """ResNet-20 and ResNet-8, which take images of any size at one cost, with the batches and seconds of a CPU."""
    base = CandidateConfig(
        training=TrainingConfig(batch_size=64),
        teacher=TeacherConfig(teacher_model="resnet20"),
        student=StudentConfig(student_model="resnet8"),
        measure=MeasureConfig(latency_seconds=1.0),
    )
    base = base.replace(dataset=dataset, **_SWEEP_DEFAULTS, **vars(augment_for(dataset, image_size)))
    return SweepConfig(name="cores", search=Search(base=base, space=_space("resnet8")))


def epochs_for(images: int, batch_size: int) -> dict[str, int]:
    """Epochs that suit a training split, before a probe has said how many of them these cores can pay.

    They depend on the images alone: so a command has the same sweep whatever else the machine does.

    Example:
        >>> epochs_for(45000, 64), epochs_for(500, 64)["teacher_epochs"]
        ({'teacher_epochs': 30, 'student_epochs': 12, 'recovery_epochs': 12}, 86)
    """
    steps = max(1, images // batch_size)
    epochs = max(EPOCHS_ON_CORES, min(MOST_EPOCHS, round(ENOUGH_STEPS / steps)))
    part = round(0.4 * epochs)
    return {"teacher_epochs": epochs, "student_epochs": part, "recovery_epochs": part}


def kind_of(dataset: str) -> str:
    """What the name of a sweep without a preset begins with: the data set, or the last part of its folder."""
    return (
        re.sub(r"[^A-Za-z0-9]+", "-", dataset.rstrip("/").rpartition("/")[2].rpartition(":")[2]).strip("-") or "sweep"
    )


# Precisions that a runtime has fast kernels for: every network is written in all of them.
FILES = {
    "onnxruntime_cpu": "fp32,int8_ptq",
    "openvino": "fp32,int8_ptq",
    "onnxruntime_cuda": "fp32,fp16",
    "tensorrt": "fp32,fp16,int8_ptq",
}


def _space(student: str) -> dict[str, BaseDistribution]:
    """The default space over the teacher itself and a small network as students, in the files of the CPU's runtime."""
    files = {"precision": parse("precision", FILES["onnxruntime_cpu"])}
    return default_space() | {"student_model": parse("student_model", f"{TEACHER_ITSELF},{student}")} | files


PRESETS: Mapping[str, Callable[[], SweepConfig]] = {"cifar10": cifar10, "quick": quick}


def augment_for(dataset: str, image_size: int | None) -> AugmentConfig:
    """Augmentation that suits a data set: digits must not be mirrored; large images are cropped by area."""
    if dataset == "digits":
        return AugmentConfig(flip=False, crop_padding=2)
    return AugmentConfig(crop="resized" if (image_size or 32) >= 128 else "padded")
