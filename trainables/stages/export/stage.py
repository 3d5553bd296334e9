"""A trained network becomes the files to ship, once per network and precision."""

import dataclasses
import json
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Never

import numpy as np
import numpy.typing as npt
import torch

from trainables.config.candidate import CandidateConfig
from trainables.config.compression import ExportConfig
from trainables.files import sha256, write_text
from trainables.layout import ONNX_FILE, RECORD
from trainables.records.encoding import to_json
from trainables.records.stages import DatasetRecord, ExportRecord, ModelRecord, read_export
from trainables.stages.data import prepared
from trainables.stages.data.augment.pixels import scaled
from trainables.stages.data.splits import evenly
from trainables.stages.export.convert import convert_fp16, quantize_int8
from trainables.stages.export.onnx_files import describe, padded
from trainables.stages.export.scheme import scheme_for
from trainables.stages.export.session import open_session, run_logits
from trainables.stages.export.writer import export, parity_chunks
from trainables.stages.models.stored import load_model
from trainables.stages.workspace import Workspace
from trainables.store.results import Key, stage_key

VERSION = 3
QUANTIZED_VERSION = 3
PARITY_IMAGES = 512
CALIBRATION_PART = 64  # images that are scaled at once


def recipe(config: CandidateConfig, dataset: DatasetRecord, stage: str) -> dict[str, Any]:
    """What decides the weights of a `teacher` or `candidate`, flat and without local paths."""
    config = config.canonical() if stage == "candidate" else config.canonical().replace(**_fp32(config.export))
    row = config.flat() | {"dataset": dataset.name, "image_size": dataset.image_size}
    unused = {**vars(config.measure)}
    if stage == "teacher":
        unused |= {**vars(config.student), **vars(config.prune)}
    return {name: value for name, value in row.items() if name not in unused}


def reference_export(
    config: CandidateConfig, dataset: DatasetRecord, teacher: ModelRecord, place: Workspace
) -> Generator[Never, None, ExportRecord]:
    """The teacher's FP32 file: what candidates of every precision are timed against."""
    fp32 = config.replace(**_fp32(config.export))
    return (yield from exported(fp32, dataset, teacher, recipe(config, dataset, "teacher"), place))


def exported(
    config: CandidateConfig, dataset: DatasetRecord, model: ModelRecord, made_by: Mapping[str, Any], place: Workspace
) -> Generator[Never, None, ExportRecord]:
    """Write the files of a trained network in the configuration's precision, or find them in the store.

    FP32 is ONNX and TorchScript, checked against PyTorch; the other precisions are ONNX alone, made of that file, and
    say how far they are from it. `model` is what `qat` left where the precision is `int8_qat`.

    Raises:
        ValueError: if the network cannot be written in this precision.
    """
    plain: ExportRecord = yield from _exported_fp32(config, dataset, model, made_by, place)
    if config.export.precision == "fp32":
        return plain
    return (yield from _converted(config, dataset, plain, made_by, place))


def convert(source: Path, target: Path, config: CandidateConfig, dataset: DatasetRecord) -> None:
    """Writes an FP32 file in the configuration's precision.

    INT8 is calibrated on training images, with the integers that `latency_runtime` is fast with on this machine.
    """
    export = config.export
    if export.precision == "fp32":
        shutil.copyfile(source, target)
    elif export.precision == "fp16":
        convert_fp16(source, target)
    else:
        scheme = scheme_for(config.measure.latency_runtime)
        quantize_int8(source, target, calibration_pixels(dataset, export.calibration_images), scheme)


def calibration_pixels(dataset: DatasetRecord, count: int) -> npt.NDArray[np.float32]:
    """Up to `count` training images (N, 3, H, W) in [0, 1], evenly over the split: the same ones every time."""
    images, _ = prepared.load(dataset, "train")
    parts = torch.from_numpy(images[evenly(len(images), count)]).split(CALIBRATION_PART)
    return np.concatenate([(scaled(part, dataset.image_size) / 255).numpy() for part in parts])


def _fp32(export: ExportConfig) -> dict[str, Any]:
    return vars(ExportConfig(opset=export.opset))


def _exported_fp32(
    config: CandidateConfig, dataset: DatasetRecord, model: ModelRecord, made_by: Mapping[str, Any], place: Workspace
) -> Generator[Never, None, ExportRecord]:
    key: Key = stage_key("exported", version=VERSION, parents=[model.key], opset=config.export.opset)

    def compute(folder: Path) -> Generator[Never, None, None]:
        with place.device_lock().shared():
            record = export(
                load_model(model),
                mean=dataset.mean,
                std=dataset.std,
                image_size=dataset.image_size,
                class_names=dataset.class_names,
                recipe=dict(made_by) | _fp32(config.export),  # the file is shared by all precisions
                parity_images=parity_images(dataset),
                opset=config.export.opset,
                folder=folder,
                key=str(key),
            )
        write_text(folder / RECORD, to_json(record))
        yield from ()

    return read_export((yield from place.store.obtain(key, compute)))


def _converted(
    config: CandidateConfig, dataset: DatasetRecord, plain: ExportRecord, made_by: Mapping[str, Any], place: Workspace
) -> Generator[Never, None, ExportRecord]:
    precision = config.export.precision
    decides: dict[str, Any] = {"precision": precision}
    if precision != "fp16":
        decides |= vars(scheme_for(config.measure.latency_runtime)) | {
            "calibration_images": config.export.calibration_images
        }
    key: Key = stage_key("converted", version=QUANTIZED_VERSION, parents=[plain.key, dataset.fingerprint], **decides)

    def compute(folder: Path) -> Generator[Never, None, None]:
        file = folder / ONNX_FILE
        with place.device_lock().shared():
            convert(plain.folder / ONNX_FILE, file, config, dataset)
            describe(file, {"recipe": padded(json.dumps(dict(made_by), sort_keys=True, default=str))})
            max_abs, agreement = distance(file, plain.folder / ONNX_FILE, parity_images(dataset))
        record = dataclasses.replace(
            plain,
            key=str(key),
            folder=folder,
            size_bytes=file.stat().st_size,
            torchscript_bytes=None,
            onnx_sha256=sha256(file),
            parity_max_abs=max_abs,
            parity_agreement=agreement,
        )
        write_text(folder / RECORD, to_json(record))
        yield from ()

    return read_export((yield from place.store.obtain(key, compute)))


def distance(file: Path, plain: Path, images: torch.Tensor) -> tuple[float, float]:
    """(Largest |logit difference|, share of equal top-1 classes) of a file against its FP32 original.

    Raises:
        ValueError: if a logit is not finite.
    """
    chunks = parity_chunks(images)
    sessions = [open_session(path, threads=1) for path in (file, plain)]
    got_BC, expected_BC = (np.concatenate([run_logits(session, chunk) for chunk in chunks]) for session in sessions)
    if not np.isfinite(got_BC).all():
        raise ValueError("In this precision the network gives logits that are nan or inf; take precision='fp32'.")
    max_abs = float(np.abs(expected_BC - got_BC).max())
    return max_abs, float((got_BC.argmax(axis=1) == expected_BC.argmax(axis=1)).mean())


def parity_images(dataset: DatasetRecord) -> torch.Tensor:
    """Validation images (N, 3, H, W) in [0, 1] that an exported file is compared on, evenly over the split."""
    pixels, _ = prepared.load(dataset, "val")
    return torch.from_numpy(pixels[evenly(len(pixels), PARITY_IMAGES)]).float() / 255
