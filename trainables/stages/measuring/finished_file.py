"""What the user gets from the exported file, on this machine, once per file."""

from collections.abc import Generator
from pathlib import Path
from typing import Never

from trainables.config.candidate import CandidateConfig
from trainables.files import write_text
from trainables.layout import ONNX_FILE, RECORD
from trainables.records.encoding import to_json
from trainables.records.stages import DatasetRecord, ExportRecord, Measurement, ModelRecord, read_measurement
from trainables.stages.data import prepared
from trainables.stages.export.session import accuracy, open_session
from trainables.stages.measuring.beside_teacher import Timed, hardware, timed
from trainables.stages.measuring.teacher_scale import scale
from trainables.stages.workspace import Workspace
from trainables.store.results import stage_key

VERSION = 4
THROUGHPUT_BATCH = 64


def measured(
    config: CandidateConfig,
    dataset: DatasetRecord,
    model: ModelRecord,
    files: ExportRecord,
    reference: ExportRecord,
    place: Workspace,
) -> Generator[Never, None, tuple[Measurement, tuple[str, ...]]]:
    """Accuracy on validation and, once, on test; latency in alternation with the teacher's file, alone on the node.

    The teacher's own latency is the scale of all others: what it takes beside itself a second time is noise. The
    teacher is measured when a sweep begins, so its measurement checks the scale.

    Returns:
        The measurement, and the keys of what it stands on in the store: itself and the scales.
    """
    is_teacher = files.onnx_sha256 == reference.onnx_sha256
    found = yield from scale(config.measure, reference, place, check=is_teacher)
    key = stage_key(
        "measured",
        version=VERSION,
        parents=[files.onnx_sha256, reference.onnx_sha256, dataset.fingerprint, str(found.keys[-1])],
        processor=hardware(config.measure.latency_runtime),
        **vars(config.measure),
    )

    def compute(folder: Path) -> Generator[Never, None, None]:
        onnx_path = files.folder / ONNX_FILE
        session = open_session(onnx_path, threads=place.threads)
        with place.device_lock().shared():
            val_accuracy = accuracy(session, *prepared.load(dataset, "val"))
            test_accuracy = accuracy(session, *prepared.load(dataset, "test"))
        took: Timed = timed(config.measure, onnx_path, reference, found.own, place, throughput_batch=THROUGHPUT_BATCH)
        assert took.throughput_ips is not None
        record = Measurement(
            val_accuracy=val_accuracy,
            test_accuracy=test_accuracy,
            latency=found.own if is_teacher else took.latency,
            reference_latency_p50_ms=took.reference_latency_p50_ms,
            reference_latency_raw_p50_ms=took.reference_latency_raw_p50_ms,
            throughput_64_ips=took.throughput_ips,
            size_bytes=files.size_bytes,
            num_params=model.num_params,
            num_nonzero_params=model.num_nonzero_params,
            macs=model.macs,
        )
        write_text(folder / RECORD, to_json(record))
        yield from ()

    record = read_measurement((yield from place.store.obtain(key, compute)))
    return record, (str(key), *map(str, found.keys))
