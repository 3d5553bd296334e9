"""Whether limits can be met at all: measure the narrowest student of a search space before anything is trained."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sweeps.search.config import Search, SweepConfig
from sweeps.search.space import values_of
from trainables.config.candidate import CandidateConfig
from trainables.config.flags import flag_name
from trainables.records.latency import LatencyRecord
from trainables.records.stages import DatasetRecord
from trainables.stages.export.session import open_session
from trainables.stages.export.writer import export_untrained
from trainables.stages.measuring.timing import alternate
from trainables.stages.models.inspection import count
from trainables.stages.models.stored import build_for
from trainables.stages.pruning.methods import prune
from trainables.stages.runtimes.base import Runner

# Other programs may run while this latency is measured, so a limit is out of reach only if the narrowest student takes
# more than this many times as long.
LATENCY_MARGIN = 2.0
# How much smaller and faster than FP32 an INT8 file is at most (tests/benchmarks/LOG.md: 3.9 times and 4.4 times).
INT8_SMALLER, INT8_FASTER = 4.0, 5.0
TIMING_S = 0.3


def check_reach(config: SweepConfig, dataset: DatasetRecord) -> None:
    """Refuse limits of latency, size or MACs that even the narrowest student of the space exceeds.

    Nothing is refused where the narrowest student is not known before training: if a share of MACs, size or latency
    is pruned (`pruning_of`), or if the trained weights decide the widths (`pruning_scope`).

    Raises:
        ValueError: naming the limit, the narrowest student's value, and what to change.
    """
    search, limits = config.search, config.limits
    # only ONNX Runtime on this CPU can be timed in this process; any other latency is unknown here
    measure = search.base.measure
    here = ["max_latency_ms"] if measure.latency_runtime == "onnxruntime_cpu" and measure.measure_on is None else []
    bounded = [name for name in (*here, "max_size_mb", "max_macs") if getattr(limits, name) is not None]
    scopes = values_of(search.space, search.base, "pruning_scope")
    if not bounded or search.base.prune.pruning_of != "channels" or scopes != ["layer"]:
        return
    students = values_of(search.space, search.base, "student_model")
    reached = [_reach(config, search.base.replace(student_model=name), dataset, bounded) for name in students]
    if all(reached):
        raise ValueError(reached[0])


def _reach(config: SweepConfig, base: CandidateConfig, dataset: DatasetRecord, bounded: Sequence[str]) -> str:
    """Why the narrowest shape of one student is over the limits; empty if it is not."""
    limits, ratio = config.limits, largest_ratio(config.search)
    measured = narrowest(base, dataset, ratio)
    smaller, faster = 1.0, LATENCY_MARGIN
    if values_of(config.search.space, base, "precision") != ["fp32"]:
        smaller, faster = 1 / INT8_SMALLER, LATENCY_MARGIN * INT8_FASTER
    least = {"latency_p50_ms": measured["latency_p50_ms"] / faster, "size_bytes": measured["size_bytes"] * smaller}
    excess = limits.excess(measured | least)
    over = [name for name in bounded if excess[name] > 0]
    if not over:
        return ""
    has = {
        "max_latency_ms": f"{measured['latency_p50_ms']:.3g} ms",
        "max_size_mb": f"{measured['size_bytes'] / 1e6:.3g} MB",
        "max_macs": f"{measured['macs']:.3g} MACs",
    }
    told = ", ".join(f"{flag_name(name)} {getattr(limits, name):g} (it has {has[name]})" for name in over)
    how = f"{100 * ratio:g} % of its channels removed" if ratio else "no channels removed"
    return (
        f"{told}: the narrowest student of this space, {base.network} with {how}, is over it in FP32;"
        " raise the limit, widen --pruning-ratio, or take a smaller --student-model."
    )


def largest_ratio(search: Search) -> float:
    """The largest fraction of channels that any candidate loses; 0 if none loses any."""
    methods = values_of(search.space, search.base, "pruning_method")
    ratios = values_of(search.space, search.base, "pruning_ratio")
    return float(max(ratios)) if "structured" in methods else 0.0


def narrowest(base: CandidateConfig, dataset: DatasetRecord, ratio: float) -> dict[str, float]:
    """Measure `latency_p50_ms`, `size_bytes` and `macs` of the untrained student with `ratio` of channels removed."""
    sides: dict[str, Any] = {"image_size": dataset.image_size, "num_classes": dataset.num_classes}
    # fork_rng: building a model draws random weights, and the sweep's own draws must not depend on limits
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        model = build_for(base.network, dataset)
        prune(model, method="structured", ratio=ratio, ignore=base.prune.ignored, must_remove=False, **sides)
        path = Path(folder) / "narrowest.onnx"
        size_bytes = export_untrained(
            model,
            mean=dataset.mean,
            std=dataset.std,
            image_size=dataset.image_size,
            class_names=dataset.class_names,
            recipe=base.resolve(dataset, device="cpu").recipe(),
            opset=base.export.opset,
            path=path,
        )
        # against itself: the limit is absolute, so that no teacher is needed
        timed, _ = time_alternating(path, path, threads=base.measure.latency_threads, seconds=TIMING_S)
        macs = count(model, dataset.image_size)[2]
    return {"latency_p50_ms": timed.latency_p50_ms, "size_bytes": float(size_bytes), "macs": float(macs)}


def time_alternating(
    candidate_path: Path, reference_path: Path, *, threads: int, seconds: float
) -> tuple[LatencyRecord, LatencyRecord]:
    """Measure the latency of one image through both files, in turn, in this process (`timing.alternate`).

    For comparisons by hand; a sweep steers by latencies from a clean room. The two paths may be the same file.
    """
    ours, theirs = (_runner(path, threads) for path in (candidate_path, reference_path))
    took = alternate(ours, theirs, seconds=seconds)
    return took.candidate, took.reference


def _runner(path: Path, threads: int) -> Runner:
    session = open_session(path, threads)
    image = session.get_inputs()[0]
    # random pixels: zeros run faster than any real image
    feed = {image.name: np.random.default_rng(0).random((1, *image.shape[1:]), dtype=np.float32)}
    return Runner(run=lambda: session.run(None, feed), provider=session.get_providers()[0], device=f"cpu:{threads}")
