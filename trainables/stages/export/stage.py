"""Export a trained network to the files to ship, once per network and precision."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainables.config.candidate import Candidate
from trainables.config.compression import ExportConfig
from trainables.files import sha256, write_bytes, write_text
from trainables.layout import ONNX_FILE, RECORD
from trainables.records.encoding import to_json
from trainables.records.stages import DatasetRecord, ExportRecord, ModelRecord, read_export
from trainables.stages.data import prepared
from trainables.stages.data.augment.pixels import resize
from trainables.stages.data.splits import sample_evenly
from trainables.stages.export.convert import Int8Converter, convert_fp16, quantize_int8
from trainables.stages.export.float_layers import keep_in_float
from trainables.stages.export.onnx_files import describe, pad
from trainables.stages.export.scheme import scheme_of
from trainables.stages.export.session import accuracy, open_session, run_logits
from trainables.stages.export.writer import export, parity_chunks
from trainables.stages.models.stored import load_model
from trainables.stages.workspace import Bench
from trainables.store.results import Key, stage_key

VERSION = 3
QUANTIZED_VERSION = 3
MIXED_VERSION = 1
TOLERANCE = "int8_tolerance"
PARITY_IMAGES = 512
CALIBRATION_PART = 64  # images scaled at a time


def export_teacher(bench: Bench, teacher: ModelRecord) -> ExportRecord:
    """Write the teacher's FP32 file, or find it in the store: candidates of every precision are timed against it."""
    row = bench.candidate.teacher_row()
    # how a file is timed is no part of how it was made
    made_by = {name: value for name, value in row.items() if name not in vars(bench.candidate.measure)}
    return _export_fp32(bench, teacher, made_by)


def export_model(bench: Bench, model: ModelRecord, made_by: Mapping[str, Any]) -> ExportRecord:
    """Write the files of a trained network in the candidate's precision, or find them in the store.

    FP32 is ONNX and TorchScript, checked against PyTorch. The other precisions are ONNX only, converted from that file;
    their records hold their distance from it. If an `int8_ptq` file loses more than `int8_tolerance` of the validation
    accuracy, the layers that cost it are kept in float.

    Args:
        model: for `int8_qat`, the network from `train_quantised`.
        made_by: the recipe that goes into the file.

    Raises:
        ValueError: if the network cannot be written in this precision.
    """
    plain = _export_fp32(bench, model, made_by)
    if bench.candidate.export.precision == "fp32":
        return plain
    converted = _convert(bench, plain, made_by)
    return _mix(bench, plain, converted, made_by) if bench.candidate.export.precision == "int8_ptq" else converted


def convert(source: Path, target: Path, candidate: Candidate, dataset: DatasetRecord) -> None:
    """Write an FP32 file in the candidate's precision.

    INT8 is calibrated on training images and uses the integers that `latency_runtime` runs fast on this machine.
    """
    export = candidate.export
    if export.precision == "fp32":
        shutil.copyfile(source, target)
    elif export.precision == "fp16":
        convert_fp16(source, target)
    else:
        scheme = scheme_of(candidate.measure)
        quantize_int8(source, target, calibration_pixels(dataset, export.calibration_images), scheme)


def calibration_pixels(dataset: DatasetRecord, count: int) -> npt.NDArray[np.float32]:
    """Up to `count` training images (N, 3, H, W) in [0, 1], evenly spread over the split; the same in every call."""
    images, _ = prepared.load(dataset, "train")
    parts = torch.from_numpy(images[sample_evenly(len(images), count)]).split(CALIBRATION_PART)
    return np.concatenate([(resize(part, dataset.image_size) / 255).numpy() for part in parts])


def _export_fp32(bench: Bench, model: ModelRecord, made_by: Mapping[str, Any]) -> ExportRecord:
    dataset, opset = bench.dataset, bench.candidate.export.opset
    key: Key = stage_key("exported", version=VERSION, parents=[model.key], opset=opset)

    def compute(folder: Path) -> None:
        with bench.place.device_lock().shared():
            record = export(
                load_model(model),
                mean=dataset.mean,
                std=dataset.std,
                image_size=dataset.image_size,
                class_names=dataset.class_names,
                recipe=_recipe(dict(made_by) | vars(ExportConfig(opset=opset))),  # all precisions share the file
                parity_images=parity_images(dataset),
                opset=opset,
                folder=folder,
                key=str(key),
            )
        write_text(folder / RECORD, to_json(record))

    return read_export(bench.place.store.once(key, compute))


def _convert(bench: Bench, plain: ExportRecord, made_by: Mapping[str, Any]) -> ExportRecord:
    candidate, dataset = bench.candidate, bench.dataset
    decides: dict[str, Any] = {"precision": candidate.export.precision}
    if candidate.export.precision != "fp16":
        decides |= vars(scheme_of(candidate.measure))
        decides |= {"calibration_images": candidate.export.calibration_images}
    key: Key = stage_key("converted", version=QUANTIZED_VERSION, parents=[plain.key, dataset.fingerprint], **decides)

    def compute(folder: Path) -> None:
        file = folder / ONNX_FILE
        with bench.place.device_lock().shared():
            convert(plain.folder / ONNX_FILE, file, candidate, dataset)
            _write_record(folder, str(key), plain, made_by, parity_images(dataset))

    return read_export(bench.place.store.once(key, compute))


def _mix(bench: Bench, plain: ExportRecord, whole: ExportRecord, made_by: Mapping[str, Any]) -> ExportRecord:
    """The INT8 file whose layers are in float as far as `int8_tolerance` demands; the whole one if none needs to be."""
    tolerance, dataset = bench.candidate.export.int8_tolerance, bench.dataset
    if 1 - whole.parity_agreement <= tolerance:  # accuracy cannot differ by more than the classes do
        return whole
    key: Key = stage_key("mixed", version=MIXED_VERSION, parents=[whole.key], int8_tolerance=tolerance)

    def accuracy_of(file: Path | bytes) -> float:
        return accuracy(open_session(file, bench.place.threads), *prepared.load(dataset, "val"))

    def compute(folder: Path) -> None:
        source, scheme = plain.folder / ONNX_FILE, scheme_of(bench.candidate.measure)
        with bench.place.device_lock().shared(), tempfile.TemporaryDirectory() as scratch:
            best = accuracy_of(source)
            lost = best - accuracy_of(whole.folder / ONNX_FILE)
            found = None
            if lost > tolerance:
                pixels = calibration_pixels(dataset, bench.candidate.export.calibration_images)
                converter = Int8Converter(source, pixels, scheme, Path(scratch))
                found = keep_in_float(converter, lambda file: best - accuracy_of(file), whole=lost, tolerance=tolerance)
            if found is None:
                write_text(folder / RECORD, to_json(whole))
                return
            write_bytes(folder / ONNX_FILE, found[0])
            _write_record(folder, str(key), plain, made_by, parity_images(dataset), kept_in_float=found[1])

    mixed = read_export(bench.place.store.once(key, compute))
    return mixed if mixed.kept_in_float else whole


def _recipe(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decided a file without float layers; the tolerance has no part in it."""
    return {name: value for name, value in made_by.items() if name != TOLERANCE}


def _write_record(
    folder: Path,
    key: str,
    plain: ExportRecord,
    made_by: Mapping[str, Any],
    images: torch.Tensor,
    kept_in_float: Sequence[str] = (),
) -> None:
    """Describe a converted file in its metadata and in a record beside it."""
    file = folder / ONNX_FILE
    recipe = {**_recipe(made_by), **({TOLERANCE: made_by[TOLERANCE]} if kept_in_float else {})}
    about = {"recipe": pad(json.dumps(recipe, sort_keys=True, default=str))}
    describe(file, about | ({"kept_in_float": json.dumps(kept_in_float)} if kept_in_float else {}))
    max_abs, agreement = distance(file, plain.folder / ONNX_FILE, images)
    record = dataclasses.replace(
        plain,
        key=key,
        folder=folder,
        size_bytes=file.stat().st_size,
        torchscript_bytes=None,
        onnx_sha256=sha256(file),
        parity_max_abs=max_abs,
        parity_agreement=agreement,
        kept_in_float=tuple(kept_in_float),
    )
    write_text(folder / RECORD, to_json(record))


def distance(file: Path, plain: Path, images: torch.Tensor) -> tuple[float, float]:
    """Measure (largest |logit difference|, share of equal top-1 classes) of a file against its FP32 original.

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
    """Validation images (N, 3, H, W) in [0, 1] for comparing an exported file, evenly spread over the split."""
    pixels, _ = prepared.load(dataset, "val")
    return torch.from_numpy(pixels[sample_evenly(len(pixels), PARITY_IMAGES)]).float() / 255
