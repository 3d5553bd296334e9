"""Measure a finished, exported file: accuracy once per file, latency once per file and machine."""

from dataclasses import dataclass
from pathlib import Path

from trainables.files import write_text
from trainables.layout import ONNX_FILE, RECORD
from trainables.records.encoding import read_record, to_json
from trainables.records.latency import CLEAN
from trainables.records.stages import ExportRecord, Measurement, ModelRecord, ShapeRecord
from trainables.stages.data import prepared
from trainables.stages.export.session import accuracy, open_session
from trainables.stages.measuring.beside_teacher import (
    Timed,
    find_scale,
    find_timed,
    hardware,
    shape_digest,
    time_beside,
    timed_on,
)
from trainables.stages.workspace import Bench
from trainables.store.results import Key, stage_key

ACCURACY_VERSION, LATENCY_VERSION = 1, 1


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """The accuracies of a file, 0 to 1."""

    val_accuracy: float
    test_accuracy: float


def measure_file(
    bench: Bench,
    model: ModelRecord,
    files: ExportRecord,
    reference: ExportRecord,
    *,
    shape: ShapeRecord | None = None,
    renew_scale: bool = False,
) -> tuple[Measurement, tuple[str, ...]]:
    """Measure accuracy and latency of an exported file, or find both in the store.

    Accuracy is measured on validation and, once, on test; latency in alternation with the teacher's file, alone on the
    node. The teacher's file is not timed again: its latency is the scale of its sweep.

    Args:
        shape: the measurement of the untrained shape, which shortens this one if the file has that shape.
        renew_scale: measure the teacher once more if it was not clean; only the first file of a sweep may do that.

    Returns:
        The measurement, and the store keys it depends on.
    """
    is_teacher = files.onnx_sha256 == reference.onnx_sha256
    digest = shape_digest(files.folder / ONNX_FILE)
    scale = find_scale(bench.candidate.measure, reference, bench.place, renew=renew_scale)
    tested, key = _test(bench, files)
    timed = scale if is_teacher else _time(bench, files, reference, same_shape(shape, digest))
    took = timed.took
    assert took.throughput_ips is not None
    measurement = Measurement(
        val_accuracy=tested.val_accuracy,
        test_accuracy=tested.test_accuracy,
        latency=timed.latency,
        shape=digest,
        reference_latency_p50_ms=scale.latency.latency_p50_ms,
        reference_latency_beside_p50_ms=took.reference.latency_p50_ms,
        latency_vs_teacher=1.0 if is_teacher else took.ratio,
        latency_vs_teacher_half_width=0.0 if is_teacher else took.ratio_half_width,
        throughput_64_ips=took.throughput_ips,
        size_bytes=files.size_bytes,
        num_params=model.num_params,
        num_nonzero_params=model.num_nonzero_params,
        macs=model.macs,
    )
    return measurement, tuple(dict.fromkeys(map(str, (key, *timed.keys, *scale.keys))))


def same_shape(shape: ShapeRecord | None, digest: str) -> ShapeRecord | None:
    """The measurement of an untrained shape, if it is clean and the shape is that of the file with this digest."""
    return shape if shape is not None and shape.shape == digest and shape.latency_verdict == CLEAN else None


def _test(bench: Bench, files: ExportRecord) -> tuple[Accuracies, Key]:
    dataset, place = bench.dataset, bench.place
    key = stage_key(
        "accuracy",
        version=ACCURACY_VERSION,
        parents=[files.onnx_sha256, dataset.fingerprint],
        processor=hardware("onnxruntime_cpu"),
    )

    def compute(folder: Path) -> None:
        session = open_session(files.folder / ONNX_FILE, threads=place.threads)
        # Accuracy does not depend on the load, so trainings may go on beside it; a latency takes the node alone.
        with place.device_lock().shared():
            val_accuracy = accuracy(session, *prepared.load(dataset, "val"))
            test_accuracy = accuracy(session, *prepared.load(dataset, "test"))
        write_text(folder / RECORD, to_json(Accuracies(val_accuracy=val_accuracy, test_accuracy=test_accuracy)))

    return read_record(Accuracies, place.store.once(key, compute)), key


def _time(bench: Bench, files: ExportRecord, reference: ExportRecord, known: ShapeRecord | None) -> Timed:
    measure, place = bench.candidate.measure, bench.place

    def key_of(take: int) -> Key:
        return stage_key(
            "latency",
            version=LATENCY_VERSION,
            parents=[files.onnx_sha256, reference.onnx_sha256],
            processor=timed_on(measure),
            take=take,
            **measure.key_parts(),
        )

    def compute(folder: Path) -> None:
        path = files.folder / ONNX_FILE
        took = time_beside(measure, path, reference, place, known=known)
        write_text(folder / RECORD, to_json(took))

    return find_timed(place.store, key_of, compute)
