"""The arrows between stages: frozen records of what a stage left behind (standard library only)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainables.records.encoding import read_record
from trainables.records.latency import LatencyRecord


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
    """Pixels of a side of what networks take; training images may lie there smaller (`stages.data.prepared.load`)."""
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
class Measurement:
    """What a user gets from the exported file."""

    val_accuracy: float
    """Of the exported ONNX file on the validation split, 0 to 1: what the search sees."""
    test_accuracy: float
    """The same on the test split, read once; never steers anything."""
    latency: LatencyRecord
    reference_latency_p50_ms: float
    """The teacher's own p50 on this machine, the same for all files that are compared with it."""
    reference_latency_raw_p50_ms: float
    """The teacher's p50 in alternation with this file, drift included."""
    throughput_64_ips: float
    """Images a second in calls of 64 images, one after the other, on the same device."""
    size_bytes: int
    num_params: int
    num_nonzero_params: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class ShapeRecord:
    """What a candidate will cost its user, known from its untrained shape before an epoch is spent."""

    channel_ratio: float
    """Fraction of channels to remove a layer; 0 if none is removed."""
    latency_p50_ms: float
    reference_latency_p50_ms: float
    """The teacher's own p50, the same for all."""
    latency_verdict: str
    """`clean`, or why the latency is not to be trusted."""
    latency_alone_s: float
    """Seconds that everybody else on the device had to pause for it."""
    size_bytes: int
    num_params: int
    macs: int
    seconds: float
    """What it cost to find out."""


@dataclass(frozen=True, kw_only=True)
class CandidateRecord:
    """A finished candidate: what was made, out of what, and what it measures."""

    stage: str
    """`candidate`, or `teacher` for the reference."""
    export: ExportRecord
    measurement: Measurement
    achieved: Mapping[str, float]
    """What pruning really did, by the names it has as metrics; empty for the teacher."""
    curve: tuple[EpochRecord, ...]
    """All epochs that lead to it, teacher's excluded."""
    num_val: int
    """Images behind `val_accuracy`."""
    num_test: int
    """Images behind `test_accuracy`."""
    train_time_s: float
    """Training seconds of its stages (the teacher's excluded), whenever they were spent."""
    reused_time_s: float
    """Those of them, and of the teacher's, that were found in the store and not spent again."""
    keys: tuple[str, ...] = ()
    """What the store holds for it: the results of its stages, teacher's and reference's included."""

    def tags(self) -> dict[str, str]:
        """What its latency was taken on, and whether it can be trusted."""
        return self.measurement.latency.tags()

    def metrics(self) -> dict[str, float]:
        """Every final number by the name it has in Optuna, MLflow and CSV."""
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


def read_model(folder: Path) -> ModelRecord:
    """The `ModelRecord` that a stage wrote into this folder of the store."""
    return read_record(ModelRecord, folder, extra={"folder": folder})


def read_export(folder: Path) -> ExportRecord:
    """The `ExportRecord` that the export stage wrote into this folder of the store."""
    return read_record(ExportRecord, folder, extra={"folder": folder})


def read_measurement(folder: Path) -> Measurement:
    """The `Measurement` that the measuring stage wrote into this folder of the store."""
    return read_record(Measurement, folder)


def read_shape(folder: Path) -> ShapeRecord:
    """The `ShapeRecord` that the shape stage wrote into this folder of the store."""
    return read_record(ShapeRecord, folder)
