"""Convert a finished FP32 ONNX file to lower precision: FP16, or INT8 with explicit Q and DQ nodes (no torch).

Which integers are fast depends on the runtime. ONNX Runtime on x86 needs unsigned activations and signed weights;
signed activations are 2.6 times slower there. TensorRT takes only symmetric signed integers; ARM prefers them.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from trainables.files import write_bytes
from trainables.stages.export.onnx_files import about, strip
from trainables.stages.export.scheme import Scheme

CALIBRATION_BATCH = 16
WEIGHTED = ("Conv", "Gemm", "MatMul")  # operators of layers


class Int8Converter:
    """INT8 versions of one FP32 file, whole or in part; its ranges are measured once.

    Quantisation is static, QDQ, with weights per channel. A range is the mean over batches of a tensor's smallest and
    largest value: outliers set the extremes over all images, and more images made them worse.
    """

    def __init__(self, source: Path, pixels: npt.NDArray[np.float32], scheme: Scheme, scratch: Path) -> None:
        """Prepare the graph.

        Args:
            pixels: calibration images (N, 3, H, W) in [0, 1], from the training split.
            scratch: an empty folder, needed as long as files are made.

        Raises:
            ValueError: if there are no images, or ONNX Runtime's quantiser refuses the file.
        """
        from onnxruntime import quantization  # only here: it takes a second

        if len(pixels) == 0:
            raise ValueError("INT8 needs calibration images, but got 0.")
        self.source, self.pixels, self._scheme, self._scratch = source, pixels, scheme, scratch
        self._prepared = scratch / "prepared.onnx"
        with _name_refusal("INT8"), _silence_converters():
            quantization.quant_pre_process(str(source), str(self._prepared), skip_symbolic_shape=True)

    def layers(self) -> dict[str, str]:
        """Node -> layer, for all that have weights: as the network calls it or, for unnamed weights, its node."""
        graph = onnx.load(self._prepared).graph
        weights = {entry.name for entry in graph.initializer}
        nodes = [node for node in graph.node if node.op_type in WEIGHTED and node.name and node.input[1] in weights]
        names = {node.name: node.input[1] for node in nodes}
        return {
            node: weight.removeprefix("model.").removesuffix(".weight") if weight.endswith(".weight") else node
            for node, weight in names.items()
        }

    def convert(self, *, only: Sequence[str] = (), in_float: Sequence[str] = ()) -> bytes:
        """The INT8 file, with the metadata of its source.

        Args:
            only: nodes to quantise; empty for all that can be.
            in_float: nodes to leave as they are.

        Raises:
            ValueError: if ONNX Runtime's quantiser refuses the file.
        """
        from onnxruntime import quantization

        scheme, written = self._scheme, self._scratch / "int8.onnx"
        integers = quantization.QuantType.QUInt8 if scheme.activation == "uint8" else quantization.QuantType.QInt8
        with _name_refusal("INT8"), _silence_converters():
            quantization.quantize_static(
                str(self._prepared),
                str(written),
                _calibration_reader(self.source, self.pixels),
                calibration_cache_path=self._scratch / "ranges.json",
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=scheme.reduce_range,
                activation_type=integers,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_quantize=list(only),
                nodes_to_exclude=list(in_float),
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={"ActivationSymmetric": scheme.symmetric, "CalibMovingAverage": True},
            )
            proto = onnx.load(written)
            if not any(node.op_type == "DequantizeLinear" for node in proto.graph.node):
                raise ValueError("no operator of this network can be quantised.")
            return _serialize(proto, self.source)


def quantize_int8(source: Path, target: Path, pixels: npt.NDArray[np.float32], scheme: Scheme) -> None:
    """Write `source` with INT8 weights and activations to `target`, as `Int8Converter` does; keep its metadata.

    Raises:
        ValueError: if there are no images, or ONNX Runtime's quantiser refuses the file.
    """
    with tempfile.TemporaryDirectory() as scratch:
        write_bytes(target, Int8Converter(source, pixels, scheme, Path(scratch)).convert())


def convert_fp16(source: Path, target: Path) -> None:
    """Write `source` with FP16 weights and arithmetic to `target`; image and logits stay float32, metadata is kept.

    Raises:
        ValueError: if the converter refuses the file.
    """
    from onnxruntime.transformers import float16  # only here: it takes a second

    with _name_refusal("FP16"), _silence_converters():
        proto = float16.convert_float_to_float16(onnx.load(source), keep_io_types=True)
    write_bytes(target, _serialize(proto, source))


def _serialize(proto: Any, source: Path) -> bytes:
    """Clean a converted graph, give it the metadata of `source`, check it and return its bytes."""
    strip(proto)
    _sort(proto.graph)
    proto.producer_name, proto.producer_version = "", ""
    for key, value in about(source).items():
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString()
    return data


def _sort(graph: Any) -> None:
    """Sort nodes behind those whose outputs they read: the FP16 converter appends its casts at the end."""
    known = {"", *(entry.name for entry in (*graph.input, *graph.initializer))}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        if not ready:
            raise ValueError("the converted graph has a cycle.")
        ordered += ready
        known.update(name for node in ready for name in node.output)
        waiting = [node for node in waiting if not known.issuperset(node.output)]
    del graph.node[:]
    graph.node.extend(ordered)


def _calibration_reader(source: Path, pixels: npt.NDArray[np.float32]) -> Any:
    """The images in the form that ONNX Runtime's quantiser reads: one feed after the other, then None."""
    from onnxruntime.quantization import CalibrationDataReader

    name = onnx.load(source, load_external_data=False).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._starts = iter(range(0, len(pixels), CALIBRATION_BATCH))

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            start = next(self._starts, None)
            return None if start is None else {name: pixels[start : start + CALIBRATION_BATCH]}

    return Reader()


@contextlib.contextmanager
def _name_refusal(what: str) -> Iterator[None]:
    """Turn whatever a converter raises into a ValueError that names the precision."""
    try:
        yield
    except MemoryError:  # the machine's fault, not the network's: must not be stored as a refusal
        raise
    except Exception as error:  # the converters raise whatever they meet
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"This network cannot be written in {what} ({type(error).__name__}: {reason[0]}).") from error


@contextlib.contextmanager
def _silence_converters() -> Iterator[None]:
    """Silence the converters, which log to the root logger and print."""
    root = logging.getLogger()
    level, nowhere = root.level, io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.setLevel(level)
