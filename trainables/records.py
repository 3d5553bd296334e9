"""The arrows between stages: frozen records of what a stage left behind (standard library only)."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """Decoded images on this node: memory-mapped uint8 arrays, NCHW RGB."""

    name: str
    """As asked for, without local paths: `folder:photos`, not `folder:/home/me/photos`."""
    folder: Path
    """Holds {train,val,test}_images.npy (uint8, N3HW) and {train,val,test}_labels.npy (int64, N)."""
    fingerprint: str
    """Hash over pixels, labels, split and image size: equal fingerprints mean equal arrays."""
    class_names: tuple[str, ...]
    image_size: int
    """Pixels of a side."""
    num_train: int
    num_val: int
    num_test: int
    mean: tuple[float, float, float]
    """Of the training split, channels R G B, pixel values in [0, 1]."""
    std: tuple[float, float, float]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch of a training stage."""

    stage: str
    """`teacher`, `student` or `recovery`."""
    epoch: int
    """1 for the first."""
    epochs: int
    """Planned for the stage."""
    train_loss: float
    """Mean over the epoch's steps, in nats, of the loss that is optimised."""
    train_accuracy: float
    """Mean over the epoch's steps, on augmented images, 0 to 1."""
    val_loss: float
    """Cross-entropy on the validation split, nats, no label smoothing."""
    val_accuracy: float
    """On the validation split, 0 to 1, in eager PyTorch."""
    learning_rate: float
    """Of the epoch's last step."""
    seconds: float
    """Wall time of the epoch, evaluation included."""


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """A trained (and perhaps pruned) network in the store."""

    key: str
    """Its place in the store."""
    folder: Path
    """Holds `weights.pt`, a plain state_dict (loaded with `weights_only=True`)."""
    model_name: str
    num_classes: int
    image_size: int
    curve: tuple[EpochRecord, ...]
    """The epochs of this stage."""
    num_params: int
    """Elements of all parameters."""
    num_nonzero_params: int
    macs: int
    """Multiply-accumulates of one forward pass of one image."""
    train_time_s: float
    """Wall seconds that this stage took, wherever and whenever it ran."""


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """The files to ship."""

    key: str
    folder: Path
    """Holds `model.onnx` and, where the tracer manages, `model.torchscript.pt`."""
    size_bytes: int
    """Of `model.onnx`, weights inside."""
    torchscript_bytes: int | None
    """Of `model.torchscript.pt`; None where it could not be traced."""
    onnx_sha256: str
    parity_max_abs: float
    """Largest |logit difference| between ONNX Runtime and eager PyTorch over the parity images."""
    parity_agreement: float
    """Share of parity images with the same top-1 class, 0 to 1."""
    parity_images: int


@dataclass(frozen=True, kw_only=True)
class LatencyRecord:
    """Latency of one image through one file, milliseconds."""

    latency_p50_ms: float
    latency_p90_ms: float
    latency_p99_ms: float
    latency_n: int
    """Timed runs."""
    latency_device: str
    """What it ran on, such as `cpu:1` for one CPU thread."""
    latency_provider: str
    """The execution provider that the session really used."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a user gets from the exported file."""

    val_accuracy: float
    """Of the exported ONNX file on the validation split, 0 to 1: what the search sees."""
    test_accuracy: float
    """The same on the test split, read once; never steers anything."""
    latency: LatencyRecord
    reference_latency_p50_ms: float
    """The teacher's file, timed in alternation with this one."""
    size_bytes: int
    num_params: int
    num_nonzero_params: int
    macs: int


def to_json(record: Any) -> str:
    """A record as JSON text; paths become strings, tuples lists."""
    return json.dumps(dataclasses.asdict(record), indent=1, default=str)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part (POSIX rename)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def epochs_from_json(rows: list[Mapping[str, Any]]) -> tuple[EpochRecord, ...]:
    """The curve that `to_json` wrote."""
    return tuple(EpochRecord(**row) for row in rows)
