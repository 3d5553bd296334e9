"""ONNX files of efficacy.py's rival arms: written, quantised, timed against the teacher's and evaluated."""

import contextlib
import io
import logging
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from efficacy_training import Split
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

CALIBRATION_IMAGES = 256
CALLS = 10
"""Of one file in a row before the next file's turn."""


class Calibration(CalibrationDataReader):
    """Training images in batches of 64."""

    def __init__(self, train: Split) -> None:
        step = max(1, len(train.labels) // CALIBRATION_IMAGES)  # the classes come one after the other
        chosen = train.pixels[::step][:CALIBRATION_IMAGES]  # all classes: in their order
        self._left = iter(np.split(chosen.numpy().astype(np.float32) / 255, range(64, len(chosen), 64)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        pixels = next(self._left, None)
        return None if pixels is None else {"image": pixels}


def write(model: nn.Module, scale: nn.Module, path: Path, train: Split, *, int8: bool) -> Path:
    """Write PATH, which takes pixels in [0, 1], NCHW: FP32, or INT8 by static post-training quantisation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = train.pixels.shape[-1]
    fp32 = path.with_suffix(".fp32.onnx") if int8 else path
    with quiet():
        torch.onnx.export(
            nn.Sequential(scale, model).eval(),
            (torch.zeros(1, 3, side, side),),
            fp32,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=18,
            dynamo=False,  # a tenth of the other exporter's time
        )
        if int8:
            quantise(fp32, path, train)
            fp32.unlink()
    return path


def quantise(fp32: Path, int8: Path, train: Split) -> None:
    """As ONNX Runtime's manual has it, with 7-bit weights, as it says for x86 without VNNI."""
    prepared = fp32.with_suffix(".prepared.onnx")
    quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(int8),
        Calibration(train),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


@contextlib.contextmanager
def quiet():
    """Exporter and quantiser say much that is of no use here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def session(path: Path, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def times(files: Sequence[Path], seconds: float) -> list[float]:
    """Median milliseconds of one image, one thread, of every file; the files take turns for `seconds` a file."""
    sessions = [session(path) for path in files]
    image = np.random.default_rng(0).random((1, *sessions[0].get_inputs()[0].shape[1:]), dtype=np.float32)
    feeds = [{one.get_inputs()[0].name: image} for one in sessions]
    taken: list[list[float]] = [[] for _ in files]
    until, rounds = time.perf_counter() + seconds * len(files), 0
    while rounds < 3 or time.perf_counter() < until:
        for one, feed, mine in zip(sessions, feeds, taken, strict=True):
            for call in range(CALLS):
                started = time.perf_counter()
                one.run(None, feed)
                if call >= 2:  # the caches hold the last file's weights
                    mine.append(time.perf_counter() - started)
        rounds += 1
    return [1000 * statistics.median(mine) for mine in taken]


def ratio(path: Path, teacher: Path, seconds: float = 0.5) -> float:
    """Latency as a share of the teacher's, measured in alternation."""
    mine, reference = times([path, teacher], seconds)
    return mine / reference


def accuracy(path: Path, split: Split) -> float:
    """Share of images that a file gets right, in ONNX Runtime."""
    one = session(path)
    name, right = one.get_inputs()[0].name, 0
    for pixels, labels in zip(split.pixels.split(250), split.labels.split(250), strict=True):
        (logits,) = one.run(None, {name: pixels.numpy().astype(np.float32) / 255})
        right += int((logits.argmax(1) == labels.numpy()).sum())
    return right / len(split.labels)
