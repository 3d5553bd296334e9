"""Run an exported file in ONNX Runtime on the CPU: sessions, logits, accuracy (no torch)."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

PROVIDER = "CPUExecutionProvider"


def session_options(threads: int) -> Any:
    """ONNX Runtime options: `threads` intra-op threads, sequential, without spinning, silent.

    Denormals count as zero: after pruning they would make the same graph several times slower.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # spinning threads would take CPU time from everything that runs beside this session
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return options


def open_session(model: Path | bytes, threads: int) -> Any:
    """Open an ONNX Runtime session on the CPU with `session_options`."""
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, session_options(threads), providers=[PROVIDER])
    # ONNX Runtime falls back to another provider with only a line in its log
    assert session.get_providers()[0] == PROVIDER, session.get_providers()
    return session


def run_logits(session: Any, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Run images (B, 3, H, W) with values in [0, 1]; return logits (B, C)."""
    logits: npt.NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return logits


def accuracy(
    session: Any, images_u8: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer[Any]], batch: int = 256
) -> float:
    """Measure top-1 accuracy, 0 to 1, on uint8 images (N, 3, H, W).

    Pixels become float32 / 255; the graph normalises them itself.

    Raises:
        ValueError: if there are no images, counts differ, or a logit is not finite.
    """
    if len(images_u8) == 0 or len(images_u8) != len(labels):
        raise ValueError(f"As many images as labels must come, but got images={len(images_u8)}, labels={len(labels)}.")
    correct = 0
    for start in range(0, len(images_u8), batch):
        images = images_u8[start : start + batch].astype(np.float32) / np.float32(255)
        logits = run_logits(session, images)
        if not np.isfinite(logits).all():
            raise ValueError(f"Logits must be finite, but images {start} to {start + len(images) - 1} got nan or inf.")
        correct += int((logits.argmax(axis=1) == labels[start : start + batch]).sum())
    return correct / len(images_u8)
