"""Frozen records that each stage writes and the next one reads (standard library only)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainables.records.encoding import read_record
from trainables.records.latency import LatencyRecord

# Metric: how many layers of an INT8 file are in float; there is none where all are INT8.
FLOAT_LAYERS = "num_float_layers"


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """Decoded images on this node: memory-mapped uint8 arrays, NCHW RGB."""

    name: str
    """As configured, without local paths: `folder:photos`, not `folder:/home/me/photos`."""
    folder: Path
    """Holds {train,val,test}_images.npy (uint8, N3HW) and {train,val,test}_labels.npy (int64, N)."""
    fingerprint: str
    """Hash of pixels, labels, split and image size, and of `normalize` if that is given."""
    class_names: tuple[str, ...]
    image_size: int
    """Pixels per side of the networks' input; training images may be stored smaller (`stages.data.prepared.load`)."""
    num_train: int
    num_val: int
    num_test: int
    mean: tuple[float, float, float]
    """Per channel (R, G, B), pixel values in [0, 1]: over the training split, or what `normalize` says."""
    std: tuple[float, float, float]
    unlabeled: str | None = None
    """Digest of the images without labels that students learn, too; None if there are none."""
    num_unlabeled: int = 0
    unlabeled_folder: Path | None = None
    """Holds students_images.npy: the training images, then those without labels (uint8, N3HW)."""

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
    kept_in_float: tuple[str, ...] = ()
    """Layers of an INT8 file that are not INT8, because they would cost too much accuracy."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Accuracy, latency and size of the exported file."""

    val_accuracy: float
    """Accuracy of the ONNX file on the validation split, 0 to 1; the search optimises this one."""
    test_accuracy: float
    """The same on the test split, read once; no decision depends on it."""
    latency: LatencyRecord
    shape: str
    """Digest of the file's graph without its weights: latencies of files that share it differ by noise alone."""
    reference_latency_p50_ms: float
    """The teacher's own p50 on this machine: one scale for all files of a sweep."""
    reference_latency_beside_p50_ms: float
    """The teacher's p50 in alternation with this file."""
    latency_vs_teacher: float
    """This file's time by the teacher's, from pairs of neighbouring blocks in that alternation."""
    latency_vs_teacher_half_width: float
    """Half-width of its 95 % interval, relative to it."""
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
    shape: str
    """Digest of its file's graph without the weights."""
    latency_p50_ms: float
    latency_half_width: float
    """Half-width of the 95 % interval of p50, relative to p50."""
    latency_verdict: str
    """`clean`, or the reason to distrust the latency."""
    size_bytes: int
    num_params: int
    macs: int
    latency_alone_s: float = 0.0
    """Seconds for which all other work on the device was paused; 0 if it was found in the store."""
    seconds: float = 0.0
    """Wall seconds that this measurement took."""
    reference_latency_p50_ms: float = 0.0
    """The teacher's own p50, the same for all candidates."""


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
    shape_alone_s: float = 0.0
    """Seconds for which all other work on the device was paused for its untrained shape."""
    keys: tuple[str, ...] = ()
    """Store keys of the results of its stages, including the teacher's and the reference's."""

    def tags(self) -> dict[str, str]:
        """The device of its latency, whether that can be trusted, the shape of its file, and float layers of INT8."""
        kept = self.export.kept_in_float
        tags = self.measurement.latency.tags() | {"latency_shape": self.measurement.shape}
        return tags | ({"kept_in_float": ",".join(kept)} if kept else {})

    def metrics(self) -> dict[str, float]:
        """Every final number by its name in Optuna, MLflow and CSV."""
        measured, kept = self.measurement, self.export.kept_in_float
        return {
            **measured.latency.metrics(),
            "latency_alone_s": measured.latency.latency_alone_s + self.shape_alone_s,
            "latency_vs_teacher": measured.latency_vs_teacher,
            "latency_vs_teacher_half_width": measured.latency_vs_teacher_half_width,
            "val_accuracy": measured.val_accuracy,
            "test_accuracy": measured.test_accuracy,
            "reference_latency_p50_ms": measured.reference_latency_p50_ms,
            "reference_latency_beside_p50_ms": measured.reference_latency_beside_p50_ms,
            "throughput_64_ips": measured.throughput_64_ips,
            "size_bytes": measured.size_bytes,
            "num_params": measured.num_params,
            "num_nonzero_params": measured.num_nonzero_params,
            "macs": measured.macs,
            **self.achieved,
            "parity_max_abs": self.export.parity_max_abs,
            "parity_agreement": self.export.parity_agreement,
            **({FLOAT_LAYERS: len(kept)} if kept else {}),
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


def read_shape(folder: Path) -> ShapeRecord:
    """Read the `ShapeRecord` that the shape stage wrote into this folder of the store."""
    return read_record(ShapeRecord, folder)
