"""Presets: functions that return a `SweepConfig`."""

import hashlib
import json
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
