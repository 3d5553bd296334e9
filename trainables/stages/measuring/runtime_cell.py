"""Measure one trained network in one runtime, precision and batch size."""

import dataclasses
import gc
import importlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainables.config.candidate import TEACHER_ITSELF
from trainables.files import sha256, write_text
from trainables.layout import ONNX_FILE, RECORD, TORCHSCRIPT_FILE, WEIGHTS
from trainables.records.encoding import read_record, to_json
from trainables.records.latency import LatencyRecord
from trainables.records.stages import DatasetRecord, ModelRecord, read_model
from trainables.records.trial import TrialRecord
from trainables.stages.data import prepared
from trainables.stages.measuring import process
from trainables.stages.measuring.beside_teacher import hardware
from trainables.stages.measuring.clean_room import measure_apart
from trainables.stages.measuring.process import Job
from trainables.stages.runtimes.absence import find_missing
from trainables.stages.runtimes.base import RUNTIMES, AbsentError, Artifact, Logits, Opened, name_on_device
from trainables.stages.runtimes.cell import Cell
from trainables.stages.runtimes.opening import open_runtime
from trainables.stages.workspace import Workspace
from trainables.store.results import Key, Store, stage_key

TESTED_VERSION = 1
CALIBRATION_IMAGES = 256
EVALUATION_BATCH = 64  # for all evaluations, the last batch padded: runtimes that compile for a shape do so once
ZSTD_LEVEL = 3  # level 19 is smaller by 0.02 % on these files and takes minutes on large ones
# Stages that leave weights; the last of them in a trial made its network.
TRAINING_STAGES = ("teacher", "student", "scratch", "recovery", "qat")


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """The measurements of one cell."""

    latency: LatencyRecord
    """Latency of one call with `batch_images` images."""
    metrics: Mapping[str, float]
    """All results by their names in MLflow and CSV."""


def measure_cell(
    cell: Cell,
    trial: TrialRecord,
    folder: Path,
    place: Workspace,
    *,
    scratch: Path,
    seconds: float,
    models: Collection[str] = (),
) -> CellRecord:
    """Measure test accuracy, parity, size and latency of a finished trial's network in one cell.

    Parity compares with the same network's FP32 file in ONNX Runtime on the CPU over the test images, if the trial
    ships one. `speedup` compares with FP32 in eager PyTorch on the same device and threads, timed in alternation.
    Cells that differ in batch or threads alone share accuracy and parity.

    Args:
        trial: its record, and `folder` where its files lie.
        scratch: an empty folder for files of other precisions.
        seconds: time limit for timing.
        models: names `package.module:function` that may be imported. A record's word for it is not enough: whoever
            wrote it chooses what runs.

    Raises:
        AbsentError: if this cell cannot exist here; the message says why.
        ValueError: if the network cannot be written in this precision.
    """
    dataset = place.dataset()
    plain = artifact_of(trial, folder, dataset, place.store, models)
    if RUNTIMES[cell.runtime].source == "network" and not _may_build(name := _name(trial), models):
        raise AbsentError(f"PyTorch would have to import {name}, which only a record names: add --models {name}")
    shipped = str(trial.params.get("precision", "fp32"))
    if shipped == "fp32":
        artifact = convert_for_cell(plain, cell, dataset, scratch)
    elif RUNTIMES[cell.runtime].source == "onnx" and shipped == cell.precision:
        artifact = plain
    else:
        raise AbsentError(f"this trial ships an ONNX file in {shipped} and nothing else")
    reference = plain if shipped == "fp32" else None
    tested = _test(cell, artifact, reference, dataset, place)
    # Accuracy first: a network that fails in this precision costs no time alone on the node.
    took, speedup = _time(cell, artifact, plain, place, seconds)
    file = _file(cell, artifact)
    metrics = (
        tested
        | took.metrics()
        | {
            "throughput_ips": cell.batch_images / (took.latency_p50_ms / 1e3),
            "file_bytes": float(file.stat().st_size),
            "zstd_bytes": float(_zstd_bytes(file)),
            "num_test": float(dataset.num_test),
        }
    )
    return CellRecord(latency=took, metrics=metrics | speedup)


def artifact_of(
    trial: TrialRecord, folder: Path, dataset: DatasetRecord, store: Store, models: Collection[str] = ()
) -> Artifact:
    """The files of a finished trial, and its weights where the store still has them and the network may be built."""
    script = folder / TORCHSCRIPT_FILE
    artifact = Artifact(
        onnx=folder / ONNX_FILE,
        torchscript=script if script.exists() else None,
        image_size=dataset.image_size,
        num_classes=dataset.num_classes,
        mean=dataset.mean,
        std=dataset.std,
    )
    network = _network(trial, store) if _may_build(_name(trial), models) else None
    if network is None:
        return artifact
    return dataclasses.replace(artifact, weights=network.folder / WEIGHTS, model_name=network.model_name)


def convert_for_cell(plain: Artifact, cell: Cell, dataset: DatasetRecord, scratch: Path) -> Artifact:
    """Convert the network to the cell's precision: ONNX files are rewritten, PyTorch's runtimes convert on loading.

    Raises:
        AbsentError: if the runtime cannot run this precision.
        ValueError: if the network cannot be written in it.
    """
    if cell.precision == "fp32":
        return plain
    if cell.precision == "int8_qat":
        raise AbsentError("training with the rounding in the loop is part of a trial: --precision int8_qat")
    source, device = RUNTIMES[cell.runtime].source, RUNTIMES[cell.runtime].device
    if source != "onnx":
        if cell.precision == "int8_ptq":
            raise AbsentError("INT8 is written for ONNX runtimes only; PyTorch's runtimes get FP32 and FP16")
        if device == "cpu":
            raise AbsentError("PyTorch on the CPU computes FP16 through FP32, slower than FP32 itself")
        return dataclasses.replace(plain, half=True)
    if cell.precision == "int8_ptq" and cell.runtime == "onnxruntime_cuda":
        raise AbsentError("ONNX Runtime's CUDA provider has no INT8 convolutions; TensorRT has")
    return dataclasses.replace(plain, onnx=_convert(plain.onnx, cell, dataset, scratch))


def _convert(source: Path, cell: Cell, dataset: DatasetRecord, scratch: Path) -> Path:
    # only here: cells that ship a file as it is need no converter
    from trainables.stages.export.convert import convert_fp16, quantize_int8
    from trainables.stages.export.scheme import scheme_for
    from trainables.stages.export.stage import calibration_pixels

    target = scratch / f"{cell.precision}.onnx"
    if cell.precision == "fp16":
        convert_fp16(source, target)
    else:
        pixels = calibration_pixels(dataset, CALIBRATION_IMAGES)
        quantize_int8(source, target, pixels, scheme_for(cell.runtime))
    return target


def _name(trial: TrialRecord) -> str:
    """The name of the architecture that a trial's last network has."""
    student = str(trial.params.get("student_model", TEACHER_ITSELF))
    is_teacher = trial.stage == "teacher" or student == TEACHER_ITSELF
    return str(trial.params.get("teacher_model", "")) if is_teacher else student


def _may_build(name: str, models: Collection[str]) -> bool:
    return ":" not in name or name.startswith("timm:") or name in models  # timm's names are looked up, never imported


def _network(trial: TrialRecord, store: Store) -> ModelRecord | None:
    """The last network that the trial trained, or None if the store no longer has it.

    An earlier network is no substitute: the teacher, or the student before pruning, is a different network.
    """
    trained = [key for key in trial.keys if key.partition("/")[0] in TRAINING_STAGES]
    if not trained:
        return None
    stage, _, digest = trained[-1].partition("/")
    found = store.find(Key(stage, digest))
    return read_model(found, _name(trial)) if found is not None and (found / WEIGHTS).exists() else None


def _test(
    cell: Cell, artifact: Artifact, reference: Artifact | None, dataset: DatasetRecord, place: Workspace
) -> dict[str, float]:
    """Measure test accuracy and the distance of the logits from the reference's, or find both in the store.

    Raises:
        AbsentError: if the runtime cannot be opened.
        ValueError: if a logit is not finite.
    """
    package = RUNTIMES[cell.runtime].needs[0]
    if reason := find_missing(cell.runtime):
        raise AbsentError(reason)
    key = stage_key(
        "tested",
        version=TESTED_VERSION,
        parents=[sha256((reference or artifact).onnx), dataset.fingerprint],
        runtime=cell.runtime,
        package=str(importlib.import_module(package).__version__),
        precision=cell.precision,
        processor=hardware(cell.runtime),
    )

    def compute(folder: Path) -> None:
        with place.device_lock(on_gpu=RUNTIMES[cell.runtime].on_gpu).shared():
            opened = open_runtime(cell.runtime, artifact, threads=place.threads, batch=EVALUATION_BATCH)
            found = _quality(opened, reference, dataset, threads=place.threads)
            del opened  # give GPU memory back before the timing process opens the file
            gc.collect()
        write_text(folder / RECORD, to_json(found))

    return read_record(dict[str, float], place.store.once(key, compute))


def _quality(opened: Opened, other: Artifact | None, dataset: DatasetRecord, *, threads: int) -> dict[str, float]:
    images, labels = prepared.load(dataset, "test")
    got_BC = _all_logits(opened, images)
    if not np.isfinite(got_BC).all():
        raise ValueError("in this precision the network gives logits that are nan or inf.")
    found = {"test_accuracy": float((got_BC.argmax(axis=1) == labels).mean())}
    if other is None:
        return found
    expected_BC = _all_logits(open_runtime("onnxruntime_cpu", other, threads=threads, batch=EVALUATION_BATCH), images)
    return found | {
        "parity_max_abs": float(np.abs(got_BC - expected_BC).max()),
        "parity_agreement": float((got_BC.argmax(axis=1) == expected_BC.argmax(axis=1)).mean()),
    }


def _all_logits(opened: Opened, images: npt.NDArray[np.uint8]) -> Logits:
    return np.concatenate(list(_logits(opened, images)))


def _logits(opened: Opened, images: npt.NDArray[np.uint8]) -> Iterator[Logits]:
    for start in range(0, len(images), EVALUATION_BATCH):
        chunk = images[start : start + EVALUATION_BATCH].astype(np.float32) / np.float32(255)
        missing = EVALUATION_BATCH - len(chunk)
        # a last batch of another shape would make compiling runtimes compile again
        full = np.pad(chunk, ((0, missing), (0, 0), (0, 0), (0, 0)))
        yield opened.logits(full)[: len(chunk)]


def _time(
    cell: Cell, artifact: Artifact, plain: Artifact, place: Workspace, seconds: float
) -> tuple[LatencyRecord, dict[str, float]]:
    """Measure the latency of a call, and its speedup over eager PyTorch in FP32 if the weights are still there."""
    eager = name_on_device("eager", on_gpu=RUNTIMES[cell.runtime].on_gpu) if plain.weights is not None else None
    job: dict[str, Any] = {
        "candidate": artifact,
        "reference": plain if eager else artifact,
        "runtime": cell.runtime,
        "reference_runtime": eager,
        "threads": cell.runtime_threads,
        "seconds": seconds,
        "attempts": process.ATTEMPTS,
        "batch": cell.batch_images,
    }
    place.make_room()
    found = measure_apart(Job(**job), place.device_lock(on_gpu=RUNTIMES[cell.runtime].on_gpu))
    return found.candidate, {"speedup": 1 / found.ratio, "speedup_half_width": found.ratio_half_width} if eager else {}


def _file(cell: Cell, artifact: Artifact) -> Path:
    """The file that has to be shipped for this runtime."""
    source = RUNTIMES[cell.runtime].source
    file = {"onnx": artifact.onnx, "torchscript": artifact.torchscript, "network": artifact.weights}[source]
    assert file is not None
    return file


def _zstd_bytes(file: Path) -> int:
    import pyarrow  # only here: the rest of a cell is measured without it

    codec = pyarrow.Codec("zstd", compression_level=ZSTD_LEVEL)
    return len(codec.compress(file.read_bytes(), asbytes=True))
