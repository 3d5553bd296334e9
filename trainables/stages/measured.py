"""What the user gets from the exported file, on this machine, once per file."""

from collections.abc import Generator
from pathlib import Path
from typing import Never

from trainables.configs import CandidateConfig
from trainables.records import (
    DatasetRecord,
    ExportRecord,
    Measurement,
    ModelRecord,
    read_measurement,
    to_json,
    write_text,
)
from trainables.stages import data
from trainables.stages.measure import accuracy, open_session
from trainables.stages.timed import Timed, anchor, anchor_key, hardware, timed
from trainables.stages.workspace import Workspace
from trainables.store import Key, stage_key

VERSION = 4
THROUGHPUT_BATCH = 64


def measured_key(config: CandidateConfig, dataset: DatasetRecord, files: ExportRecord, reference: ExportRecord) -> Key:
    """Where the measurement of these files by a machine like this one lies in the store."""
    return stage_key(
        "measured",
        version=VERSION,
        parents=[files.onnx_sha256, reference.onnx_sha256, dataset.fingerprint],
        processor=hardware(config.measure.latency_runtime),
        **vars(config.measure),
    )


def measured_keys(
    config: CandidateConfig, dataset: DatasetRecord, files: ExportRecord, reference: ExportRecord
) -> tuple[str, str]:
    """Whatever of the store a finished measurement stands on: itself and the scale of its latency."""
    return str(measured_key(config, dataset, files, reference)), str(anchor_key(config.measure, reference))


def measured(
    config: CandidateConfig,
    dataset: DatasetRecord,
    model: ModelRecord,
    files: ExportRecord,
    reference: ExportRecord,
    place: Workspace,
) -> Generator[Never, None, Measurement]:
    """Accuracy on validation and, once, on test; latency in alternation with the teacher's file, alone on the node.

    The teacher's own latency is the scale of all others: what it takes beside itself a second time is noise.
    """
    key = measured_key(config, dataset, files, reference)

    def compute(folder: Path) -> Generator[Never, None, None]:
        onnx_path = files.folder / "model.onnx"
        session = open_session(onnx_path, threads=place.threads)
        with place.lease().shared():
            val_accuracy = accuracy(session, *data.load(dataset, "val"))
            test_accuracy = accuracy(session, *data.load(dataset, "test"))
        own = yield from anchor(config.measure, reference, place)
        took: Timed = timed(config.measure, onnx_path, reference, own, place, throughput_batch=THROUGHPUT_BATCH)
        assert took.throughput_ips is not None
        record = Measurement(
            val_accuracy=val_accuracy,
            test_accuracy=test_accuracy,
            latency=own if files.onnx_sha256 == reference.onnx_sha256 else took.latency,
            reference_latency_p50_ms=took.reference_latency_p50_ms,
            reference_latency_raw_p50_ms=took.reference_latency_raw_p50_ms,
            throughput_64_ips=took.throughput_ips,
            size_bytes=files.size_bytes,
            num_params=model.num_params,
            num_nonzero_params=model.num_nonzero_params,
            macs=model.macs,
        )
        write_text(folder / "record.json", to_json(record))
        yield from ()

    return read_measurement((yield from place.store.obtain(key, compute)))
