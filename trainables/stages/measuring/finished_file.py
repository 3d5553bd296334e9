"""Measure a finished, exported file on this machine, once per file."""

from pathlib import Path

from trainables.files import write_text
from trainables.layout import ONNX_FILE, RECORD
from trainables.records.encoding import to_json
from trainables.records.stages import ExportRecord, Measurement, ModelRecord, read_measurement
from trainables.stages.data import prepared
from trainables.stages.export.session import accuracy, open_session
from trainables.stages.measuring.beside_teacher import Timed, hardware, time_beside
from trainables.stages.measuring.teacher_scale import find_scale
from trainables.stages.workspace import Bench
from trainables.store.results import stage_key

VERSION = 4
THROUGHPUT_BATCH = 64


def measure_file(
    bench: Bench, model: ModelRecord, files: ExportRecord, reference: ExportRecord
) -> tuple[Measurement, tuple[str, ...]]:
    """Measure accuracy and latency of an exported file, or find both in the store.

    Accuracy is measured on validation and, once, on test; latency in alternation with the teacher's file, alone on the
    node. The teacher's own latency is the scale of all others; timing the teacher beside itself would add only noise.
    The teacher is measured when a sweep begins, so its measurement also checks the scale.

    Returns:
        The measurement, and the store keys it depends on: its own and those of the scales.
    """
    measure, dataset, place = bench.candidate.measure, bench.dataset, bench.place
    is_teacher = files.onnx_sha256 == reference.onnx_sha256
    scale = find_scale(measure, reference, place, check=is_teacher)
    key = stage_key(
        "measured",
        version=VERSION,
        parents=[files.onnx_sha256, reference.onnx_sha256, dataset.fingerprint, str(scale.keys[-1])],
        processor=hardware(measure.latency_runtime),
        **measure.key_parts(),
    )

    def compute(folder: Path) -> None:
        onnx_path = files.folder / ONNX_FILE
        session = open_session(onnx_path, threads=place.threads)
        # Accuracy does not depend on the load, so trainings may go on beside it; latency below takes the node alone.
        with place.device_lock().shared():
            val_accuracy = accuracy(session, *prepared.load(dataset, "val"))
            test_accuracy = accuracy(session, *prepared.load(dataset, "test"))
        took: Timed = time_beside(measure, onnx_path, reference, scale.own, place, throughput_batch=THROUGHPUT_BATCH)
        assert took.throughput_ips is not None
        record = Measurement(
            val_accuracy=val_accuracy,
            test_accuracy=test_accuracy,
            # The teacher's own scale, not a second timing: otherwise its row would differ from the scale by noise.
            latency=scale.own if is_teacher else took.latency,
            reference_latency_p50_ms=took.reference_latency_p50_ms,
            reference_latency_raw_p50_ms=took.reference_latency_raw_p50_ms,
            throughput_64_ips=took.throughput_ips,
            size_bytes=files.size_bytes,
            num_params=model.num_params,
            num_nonzero_params=model.num_nonzero_params,
            macs=model.macs,
        )
        write_text(folder / RECORD, to_json(record))

    return read_measurement(place.store.once(key, compute)), (str(key), *map(str, scale.keys))
