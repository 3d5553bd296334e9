"""What the user gets from the exported file, on this machine, once per file."""

import platform
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
from trainables.stages.measure import accuracy, open_session, time_alternating
from trainables.stages.workspace import Workspace
from trainables.store import Key, stage_key

VERSION = 1


def measured_key(config: CandidateConfig, dataset: DatasetRecord, files: ExportRecord, reference: ExportRecord) -> Key:
    """Where the measurement of these files by a machine like this one lies in the store."""
    return stage_key(
        "measured",
        version=VERSION,
        parents=[files.onnx_sha256, reference.onnx_sha256, dataset.fingerprint],
        processor=processor(),
        **vars(config.measure),
    )


def measured(
    config: CandidateConfig,
    dataset: DatasetRecord,
    model: ModelRecord,
    files: ExportRecord,
    reference: ExportRecord,
    place: Workspace,
) -> Generator[Never, None, Measurement]:
    """Accuracy on validation and, once, on test; latency in alternation with the teacher's file, alone on the node."""
    key = measured_key(config, dataset, files, reference)

    def compute(folder: Path) -> Generator[Never, None, None]:
        onnx_path = files.folder / "model.onnx"
        session = open_session(onnx_path, threads=place.threads)
        with place.lease().shared():
            val_accuracy = accuracy(session, *data.load(dataset, "val"))
            test_accuracy = accuracy(session, *data.load(dataset, "test"))
        with place.lease().alone():
            latency, reference_latency = time_alternating(
                onnx_path,
                reference.folder / "model.onnx",
                threads=config.measure.latency_threads,
                seconds=config.measure.latency_seconds,
            )
        record = Measurement(
            val_accuracy=val_accuracy,
            test_accuracy=test_accuracy,
            latency=latency,
            reference_latency_p50_ms=reference_latency.latency_p50_ms,
            size_bytes=files.size_bytes,
            num_params=model.num_params,
            num_nonzero_params=model.num_nonzero_params,
            macs=model.macs,
        )
        write_text(folder / "record.json", to_json(record))
        yield from ()

    return read_measurement((yield from place.store.obtain(key, compute)))


def processor() -> str:
    """The processor's name: a latency holds for one kind of machine."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
