"""Write the files to ship, ONNX and TorchScript, and refuse any that disagrees with PyTorch.

Shape letters: B images, C classes.
"""

import contextlib
import copy
import hashlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from trainables.files import write_bytes
from trainables.layout import ONNX_FILE, TORCHSCRIPT_FILE
from trainables.records.stages import ExportRecord
from trainables.stages.export.onnx_files import pad, strip
from trainables.stages.export.session import open_session, run_logits
from trainables.stages.models.inspection import Normalised

_jit: Any = torch.jit  # its functions carry no types
_RELATIVE_ERROR = 1e-3  # largest logit difference allowed, relative to the largest |logit| (float32; 1e-6 is usual)
_UNEQUAL = 0.01  # most of what is added to constants in a file that is only timed
_AGREEMENT = 0.999  # share of decided images whose top-1 class must agree


def export(
    model: nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int,
    class_names: Sequence[str],
    recipe: Mapping[str, Any],
    parity_images: Tensor,
    opset: int,
    folder: Path,
    key: str,
) -> ExportRecord:
    """Write `model.onnx` and, if the model can be traced, `model.torchscript.pt`; check both against eager PyTorch.

    Both take `image`, float32 RGB in [0, 1] of shape (B, 3, image_size, image_size) with any B, normalise inside with
    `mean` and `std` (R G B), and return `logits` (B, C). The metadata of the ONNX file holds class names, image size
    and recipe as JSON. The model itself is not changed.

    Raises:
        ValueError: if a file's logits differ from eager PyTorch on `parity_images` (N, 3, H, W, in [0, 1]).
    """
    if len(parity_images) == 0:
        raise ValueError("`parity_images` must hold at least one image, but got 0.")
    wrapped = Normalised(copy.deepcopy(model), mean, std).eval().cpu().to(memory_format=torch.contiguous_format)
    wrapped.requires_grad_(False)
    # two images: the exporter would fix a batch dimension of 1
    example = parity_images[:1].detach().cpu().float().contiguous().expand(2, -1, -1, -1).contiguous()
    about = {"class_names": list(class_names), "image_size": image_size, "recipe": dict(recipe)}
    with silence_exporters(), torch.no_grad():
        onnx_bytes = _onnx_bytes(wrapped, example, opset, about)
        torchscript_bytes = _torchscript_bytes(wrapped, example)

    max_abs, agreement = _check_files(wrapped, parity_images, onnx_bytes, torchscript_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / ONNX_FILE, onnx_bytes)
    if torchscript_bytes is not None:
        write_bytes(folder / TORCHSCRIPT_FILE, torchscript_bytes)
    return ExportRecord(
        key=key,
        folder=folder,
        size_bytes=len(onnx_bytes),
        torchscript_bytes=None if torchscript_bytes is None else len(torchscript_bytes),
        onnx_sha256=hashlib.sha256(onnx_bytes).hexdigest(),
        parity_max_abs=max_abs,
        parity_agreement=agreement,
        parity_images=len(parity_images),
    )


def export_untrained(
    model: nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int,
    class_names: Sequence[str],
    recipe: Mapping[str, Any],
    opset: int,
    path: Path,
) -> int:
    """Write the ONNX file of an untrained network, so that it can be timed before training; return its size in bytes.

    There is no parity check, because the logits are never used. Parameters that begin as a constant, such as biases,
    get other values in the file: the exporter leaves zeros out and writes equal tensors once, so the file would be
    smaller and a little faster than that of the trained network.
    """
    filled = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*filled.parameters(), *filled.buffers()):
            if tensor.is_floating_point() and bool((tensor == tensor.flatten()[:1]).all()):
                tensor.add_(_UNEQUAL * torch.rand(tensor.shape, generator=generator).to(tensor))
    wrapped = Normalised(filled, mean, std).eval().cpu().to(memory_format=torch.contiguous_format)
    wrapped.requires_grad_(False)
    about = {"class_names": list(class_names), "image_size": image_size, "recipe": dict(recipe)}
    with silence_exporters(), torch.no_grad():
        content = _onnx_bytes(wrapped, torch.rand(2, 3, image_size, image_size), opset, about)
    write_bytes(path, content)
    return len(content)


def _onnx_bytes(model: nn.Module, example: Tensor, opset: int, about: Mapping[str, Any]) -> bytes:
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        external_data=False,
        verbose=False,
        opset_version=opset,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None
    proto = program.model_proto
    # the exporter falls back to another opset with no more than a warning
    written = {entry.domain: entry.version for entry in proto.opset_import}[""]
    if written != opset:
        raise ValueError(f"The ONNX exporter must write {opset=}, but wrote opset {written}; take an opset from 18 on.")
    strip(proto)
    for name, value in about.items():
        text = json.dumps(value, sort_keys=True, default=str)
        proto.metadata_props.add(key=name, value=pad(text) if name == "recipe" else text)
    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data


def _torchscript_bytes(model: nn.Module, example: Tensor) -> bytes | None:
    """Trace and freeze the module; the bytes of its file, or None if the tracer fails."""
    saved = io.BytesIO()
    try:
        traced = _jit.trace(model, example, check_trace=False)
        _jit.save(_jit.freeze(traced), saved)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
    # the tables of source lines (.debug_pkl) hold paths of this machine; loading does not need them
    stripped = io.BytesIO()
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(stripped, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                # a ZipInfo of its own: no time stamp, equal weights give equal files
                new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry))
    return stripped.getvalue()


def parity_chunks(images: Tensor) -> list[npt.NDArray[np.float32]]:
    """The images in batches of 1, 3, 8 and then up to 64."""
    # several sizes, to catch a file whose batch dimension was fixed
    pixels = images.detach().cpu().float().contiguous().numpy()
    chunks, start = [], 0
    for size in (1, 3, 8, *[64] * len(pixels)):
        if start < len(pixels):
            chunks.append(pixels[start : start + size])
            start += size
    return chunks


def _check_files(
    model: nn.Module, images: Tensor, onnx_bytes: bytes, torchscript_bytes: bytes | None
) -> tuple[float, float]:
    """Check both files; return (largest |logit difference|, share of equal top-1 classes) of the ONNX file."""
    session = open_session(onnx_bytes, threads=1)
    chunks = parity_chunks(images)
    with torch.no_grad():
        eager = [model(torch.from_numpy(chunk)).numpy() for chunk in chunks]
    if torchscript_bytes is not None:
        with silence_exporters():
            script = _jit.load(io.BytesIO(torchscript_bytes))
        _check_parity("TorchScript", chunks, eager, lambda chunk: script(torch.from_numpy(chunk)).numpy())
    return _check_parity("ONNX", chunks, eager, lambda chunk: run_logits(session, chunk))


def _check_parity(
    kind: str,
    chunks: list[npt.NDArray[np.float32]],
    eager: list[npt.NDArray[np.float32]],
    run: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
) -> tuple[float, float]:
    """Check a file against eager PyTorch; return (largest |logit difference|, share of equal top-1 classes).

    Images whose best two logits are closer than the largest difference are undecided and do not fail the check.
    """
    expected_BC = np.concatenate(eager)
    got_BC = np.concatenate([run(chunk) for chunk in chunks])
    if not (np.isfinite(expected_BC).all() and np.isfinite(got_BC).all()):
        raise ValueError(f"{kind}: logits must be finite, but eager PyTorch or the file gave nan or inf.")
    max_abs = float(np.abs(expected_BC - got_BC).max())
    relative = max_abs / max(float(np.abs(expected_BC).max()), 1e-12)
    top_two = np.sort(expected_BC, axis=1)[:, -2:]
    decided = top_two[:, -1] - top_two[:, 0] > max_abs
    same = expected_BC.argmax(axis=1) == got_BC.argmax(axis=1)
    agreement = float(same[decided].mean()) if decided.any() else 1.0
    if relative >= _RELATIVE_ERROR or agreement < _AGREEMENT:
        raise ValueError(
            f"{kind} disagrees with eager PyTorch: relative logit error {relative:.2g} must be < {_RELATIVE_ERROR}, "
            f"top-1 agreement {agreement:.4f} must be >= {_AGREEMENT} ({len(expected_BC)} images)."
        )
    return max_abs, float(same.mean())


@contextlib.contextmanager
def silence_exporters() -> Iterator[None]:
    """Silence the exporters, which print progress and warn that TorchScript is deprecated."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
