"""Latencies made up, and a file to measure them with."""

from pathlib import Path

from tests.trainables.stages.measuring.linear_onnx import linear_model, random_weight
from trainables.config.candidate import DataConfig
from trainables.records.latency import LatencyRecord
from trainables.records.stages import ExportRecord
from trainables.stages.measuring.process import Measured
from trainables.stages.workspace import Workspace
from trainables.store.results import Store


def latency(p50_ms: float, *, doubt: str = "", disturbed: bool = False, half_width: float = 0.01) -> LatencyRecord:
    return LatencyRecord(
        latency_p50_ms=p50_ms,
        latency_p90_ms=p50_ms,
        latency_p99_ms=p50_ms,
        latency_p90_bound_ms=None,
        latency_n=100,
        latency_half_width=half_width,
        latency_device="cpu:1",
        latency_provider="CPUExecutionProvider",
        latency_doubt=doubt,
        latency_disturbed=disturbed,
        latency_alone_s=1.0,
    )


def measured(took: LatencyRecord) -> Measured:
    """That latency beside a teacher of 2 ms."""
    return Measured(
        candidate=took,
        reference=latency(2.0),
        ratio=took.latency_p50_ms / 2,
        ratio_half_width=0.01,
        throughput_ips=1.0,
    )


def node(folder: Path) -> Workspace:
    return Workspace(store=Store(folder), data=DataConfig(), data_dir=folder, device="cpu", threads=1, lock_dir=folder)


def linear_file(folder: Path) -> ExportRecord:
    """A small network's `model.onnx` in `folder`."""
    linear_model(folder / "model.onnx", random_weight())
    return ExportRecord(
        key="", folder=folder, size_bytes=1, torchscript_bytes=None, onnx_sha256="0",
        parity_max_abs=0.0, parity_agreement=1.0, parity_images=1,
    )  # fmt: skip
