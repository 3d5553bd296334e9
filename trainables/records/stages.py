"""Frozen records that each stage writes and the next one reads (standard library only)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainables.records.encoding import read_record
from trainables.records.latency import LatencyRecord


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """Decoded images on this node: memory-mapped uint8 arrays, NCHW RGB."""

    name: str
    """As configured, without local paths: `folder:photos`, not `folder:/home/me/photos`."""
    folder: Path
    """Holds {train,val,test}_images.npy (uint8, N3HW) and {train,val,test}_labels.npy (int64, N)."""
    fingerprint: str
    """Hash of pixels, labels, split and image size: equal fingerprints mean equal arrays."""
    class_names: tuple[str, ...]
    image_size: int
    """Pixels per side of the networks' input; training images may be stored smaller (`stages.data.prepared.load`)."""
    num_train: int
    num_val: int
    num_test: int
    mean: tuple[float, float, float]
    """Per channel (R, G, B) over the training split, pixel values in [0, 1]."""
    std: tuple[float, float, float]

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch of a training stage."""

    stage: str
    """`teacher`, `student` or `recovery`."""
    epoch: int
    """Counted from 1."""
    epochs: int
    """Planned for the stage."""
    train_loss: float
    """The optimised loss in nats, averaged over the epoch's steps."""
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
    """Its key in the store."""
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
    """Wall seconds of this stage, summed over all attempts on all nodes."""


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """The files to ship."""

    key: str
    folder: Path
    """Holds `model.onnx` and, if tracing succeeds, `model.torchscript.pt`."""
    size_bytes: int
    """Size of `model.onnx`, weights included."""
    torchscript_bytes: int | None
    """Size of `model.torchscript.pt`; None if tracing failed."""
    onnx_sha256: str
    parity_max_abs: float
    """Largest |logit difference| between ONNX Runtime and eager PyTorch over the parity images."""
    parity_agreement: float
    """Share of parity images with the same top-1 class, 0 to 1."""
    parity_images: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Accuracy, latency and size of the exported file."""

    val_accuracy: float
    """Accuracy of the ONNX file on the validation split, 0 to 1; the search optimises this one."""
    test_accuracy: float
    """The same on the test split, read once; no decision depends on it."""
    latency: LatencyRecord
    reference_latency_p50_ms: float
    """The teacher's own p50 on this machine, the same for all files compared with it."""
    reference_latency_raw_p50_ms: float
    """The teacher's p50 in alternation with this file, drift included."""
    throughput_64_ips: float
    """Images per second on the same device, in consecutive calls of 64 images."""
    size_bytes: int
    num_params: int
    num_nonzero_params: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class ShapeRecord:
    """The latency and size of a candidate, measured on its untrained shape before any training."""

    channel_ratio: float
    """Fraction of channels to remove per layer; 0 if none are removed."""
    latency_p50_ms: float
    reference_latency_p50_ms: float
    """The teacher's own p50, the same for all candidates."""
    latency_verdict: str
    """`clean`, or the reasons to distrust the latency."""
    latency_alone_s: float
    """Seconds for which all other work on the device was paused."""
    size_bytes: int
    num_params: int
    macs: int
    seconds: float
    """Wall seconds that this measurement took."""


@dataclass(frozen=True, kw_only=True)
class CandidateRecord:
    """A finished candidate: its file, its training history and its measurements."""

    stage: str
    """`candidate`, or `teacher` for the reference."""
    export: ExportRecord
    measurement: Measurement
    achieved: Mapping[str, float]
    """What pruning actually achieved, by metric name; empty for the teacher."""
    curve: tuple[EpochRecord, ...]
    """All epochs of its stages, the teacher's excluded."""
    num_val: int
    """Images behind `val_accuracy`."""
    num_test: int
    """Images behind `test_accuracy`."""
    train_time_s: float
    """Training seconds of its stages (the teacher's excluded), in this sweep or an earlier one."""
    reused_time_s: float
    """Training seconds, the teacher's included, that were saved because the result was in the store."""
    keys: tuple[str, ...] = ()
    """Store keys of the results of its stages, including the teacher's and the reference's."""

    def tags(self) -> dict[str, str]:
        """The device its latency was measured on, and whether it can be trusted."""
        return self.measurement.latency.tags()

    def metrics(self) -> dict[str, float]:
        """Every final number by its name in Optuna, MLflow and CSV."""
        measured = self.measurement
        return {
            **measured.latency.metrics(),
            "val_accuracy": measured.val_accuracy,
            "test_accuracy": measured.test_accuracy,
            "reference_latency_p50_ms": measured.reference_latency_p50_ms,
            "reference_latency_raw_p50_ms": measured.reference_latency_raw_p50_ms,
            "throughput_64_ips": measured.throughput_64_ips,
            "size_bytes": measured.size_bytes,
            "num_params": measured.num_params,
            "num_nonzero_params": measured.num_nonzero_params,
            "macs": measured.macs,
            **self.achieved,
            "parity_max_abs": self.export.parity_max_abs,
            "parity_agreement": self.export.parity_agreement,
            "num_val": self.num_val,
            "num_test": self.num_test,
            "train_time_s": self.train_time_s,
            "reused_time_s": self.reused_time_s,
        }


def read_model(folder: Path, name: str) -> ModelRecord:
    """Read the `ModelRecord` that a stage wrote into this folder of the store.

    Args:
        folder: the result.
        name: the network's name as the user gave it. It replaces the one in the file: a name is imported, and a store
            may hold what others have written.
    """
    # the folder replaces the one in the file, too: a result may have been computed on another node
    return read_record(ModelRecord, folder, extra={"folder": folder, "model_name": name})


def read_export(folder: Path) -> ExportRecord:
    """Read the `ExportRecord` that the export stage wrote into this folder of the store."""
    return read_record(ExportRecord, folder, extra={"folder": folder})


def read_measurement(folder: Path) -> Measurement:
    """Read the `Measurement` that the measuring stage wrote into this folder of the store."""
    return read_record(Measurement, folder)


def read_shape(folder: Path) -> ShapeRecord:
    """Read the `ShapeRecord` that the shape stage wrote into this folder of the store."""
    return read_record(ShapeRecord, folder)
