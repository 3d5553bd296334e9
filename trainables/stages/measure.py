"""What the exported file does for its user: accuracy and latency in ONNX Runtime on the CPU (no torch)."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from trainables.records import LatencyRecord

PROVIDER = "CPUExecutionProvider"

_WINDOW = 20
"""Runs of one warm-up window."""
_BLOCK_MS = 50.0
"""Aimed length of a timed block: long against the switch between files, short against drift of the machine."""
_HALF_WIDTH = 0.02
"""Aimed relative half-width of the candidate's p50."""


def open_session(model: Path | bytes, threads: int) -> Any:
    """An ONNX Runtime session on the CPU: `threads` intra-op threads, sequential, without spinning.

    Denormals count as zero: after pruning they would make the same graph several times slower.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=[PROVIDER])
    # ONNX Runtime falls back to other providers with no more than a line in its log
    assert session.get_providers()[0] == PROVIDER, session.get_providers()
    return session


def run_logits(session: Any, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logits (B, C) of images (B, 3, H, W) with values in [0, 1]."""
    logits: npt.NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return logits


def accuracy(
    session: Any, images_u8: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer[Any]], batch: int = 256
) -> float:
    """Top-1 accuracy, 0 to 1, of uint8 images (N, 3, H, W); pixels become float32 / 255, normalised inside the graph.

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


def time_alternating(
    candidate_path: Path, reference_path: Path, *, threads: int, seconds: float
) -> tuple[LatencyRecord, LatencyRecord]:
    """Latency of one image through both files, timed in turn (A B B A), so that drift of the machine hits both alike.

    Blocks of about 50 ms, each after one untimed run that refills the caches, until the 95 % block-bootstrap
    half-width of the candidate's p50 is within 2 % or `seconds` are over (one A B B A at least). Warm-up before that
    takes half of `seconds` at most. The two paths may be the same file.
    """
    sides = [_Side(path, threads) for path in (candidate_path, reference_path)]
    candidate, reference = sides
    with _no_gc():
        for side in sides:
            side.warm_up(seconds / 4)
        deadline = time.perf_counter() + seconds
        next_check = 8
        while True:
            for side in (candidate, reference, reference, candidate):
                side.time_block()
            if time.perf_counter() >= deadline:
                break
            if len(candidate.blocks) >= next_check:
                if median_half_width(candidate.blocks) <= _HALF_WIDTH:
                    break
                next_check = int(1.25 * next_check) + 1
    return candidate.record(threads), reference.record(threads)


def median_half_width(blocks: list[list[float]], *, resamples: int = 200) -> float:
    """Half the 95 % interval of the median, relative to it; whole blocks are resampled, as neighbours are alike."""
    times = np.asarray(blocks)
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(times), size=(resamples, len(times)))
    medians = np.median(times[picks].reshape(resamples, -1), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float((high - low) / 2 / np.median(times))


class _Side:
    """One file under the clock."""

    def __init__(self, path: Path, threads: int) -> None:
        self._session = open_session(path, threads)
        image = self._session.get_inputs()[0]
        shape = (1, *image.shape[1:])
        # random pixels, not zeros: zeros are faster than any picture
        self._feed = {image.name: np.random.default_rng(0).random(shape, dtype=np.float32)}
        self._runs = 5
        self.blocks: list[list[float]] = []

    def _time(self, runs: int) -> list[float]:
        """Milliseconds of each run."""
        clock, run, feed = time.perf_counter_ns, self._session.run, self._feed
        times = []
        for _ in range(runs):
            start = clock()
            run(None, feed)
            times.append((clock() - start) / 1e6)
        return times

    def warm_up(self, seconds: float) -> None:
        """Runs until the medians of two successive windows differ by less than 5 %, or `seconds` are over."""
        deadline = time.perf_counter() + seconds
        last, now = np.inf, float(np.median(self._time(_WINDOW)))
        while abs(now - last) >= 0.05 * now and time.perf_counter() < deadline:
            last, now = now, float(np.median(self._time(_WINDOW)))
        self._runs = int(np.clip(_BLOCK_MS / now, 5, 50))

    def time_block(self) -> None:
        self._time(1)
        self.blocks.append(self._time(self._runs))

    def record(self, threads: int) -> LatencyRecord:
        times = np.concatenate([np.asarray(block) for block in self.blocks])
        p50, p90, p99 = (float(p) for p in np.percentile(times, [50, 90, 99]))
        return LatencyRecord(
            latency_p50_ms=p50,
            latency_p90_ms=p90,
            latency_p99_ms=p99,
            latency_n=len(times),
            latency_device=f"cpu:{threads}",
            latency_provider=self._session.get_providers()[0],
        )


@contextmanager
def _no_gc() -> Iterator[None]:
    """Without Python's garbage collector, whose pauses would land in the tail of the times."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
