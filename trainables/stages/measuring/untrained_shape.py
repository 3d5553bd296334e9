"""Measure before training: cost of a pruned student from its untrained shape, found once for all trials."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainables.config.candidate import Candidate
from trainables.files import write_text
from trainables.layout import ONNX_FILE, RECORD
from trainables.records.encoding import to_json
from trainables.records.latency import CLEAN, KNOWN_SHARE, LatencyRecord
from trainables.records.stages import ExportRecord, ModelRecord, ShapeRecord, read_shape
from trainables.stages.export.scheme import scheme_of
from trainables.stages.export.stage import convert
from trainables.stages.export.writer import export_untrained
from trainables.stages.measuring.beside_teacher import (
    find_or_measure,
    find_scale,
    shape_digest,
    time_beside,
    timed_on,
)
from trainables.stages.measuring.process import Measured
from trainables.stages.models.build import source_digest
from trainables.stages.models.inspection import count
from trainables.stages.models.stored import build_for
from trainables.stages.pruning.cuts import cut_untrained
from trainables.stages.workspace import Bench
from trainables.store.results import Key, stage_key

VERSION = 5
BISECTIONS = 8  # 1/256 of the channels is finer than any layer


def measure_shape(
    bench: Bench,
    reference: ExportRecord,
    teacher: ModelRecord,
    *,
    plan: Mapping[str, int] | None = None,
    brief: bool = False,
) -> ShapeRecord:
    """Measure latency, size and MACs of this candidate's architecture with random weights, or find them in the store.

    The key is the architecture and the precision. Zeroed weights change none of these numbers, so all methods that
    zero weights share the dense student's entry. The widths that `global` and `sensitivity` scope leave depend on the
    trained weights: without `plan`, every layer loses the same share, which is an estimate. The teacher's own file
    has been measured, and is not measured again.

    Args:
        plan: the widths left by pruning, once the trained weights have decided them.
        brief: for a quarter of the time, as a file whose shape is known: where no latency limit depends on it, and
            candidates are only compared by it. Those that `pruning_of` latency depends on get all of the time.
    """
    candidate, place = bench.candidate, bench.place
    scale = find_scale(candidate.measure, reference, place)
    if not candidate.needs_training and candidate.export.precision == "fp32":
        return _shape_of_teacher(reference, teacher, scale.latency)
    measure = candidate.measure
    if brief and candidate.prune.pruning_of != "latency":
        measure = dataclasses.replace(measure, latency_seconds=KNOWN_SHARE * measure.latency_seconds)

    def compute(folder: Path) -> None:
        started = time.perf_counter()
        timing = partial(time_beside, measure, reference=reference, place=place, throughput=False)
        sketch = _Sketch(bench, folder / "untrained.onnx", timing, plan)
        # Methods that zero weights keep the dense shape, hence ratio 0.
        record = sketch.measure(sketch.channel_ratio() if candidate.prune.removes_channels else 0.0)
        sketch.path.unlink()  # the numbers stay in the store; the file has random weights and no use
        spent = {"seconds": time.perf_counter() - started, "latency_alone_s": sketch.alone_s}
        write_text(folder / RECORD, to_json(vars(record) | spent))

    def is_clean(folder: Path) -> bool:
        return read_shape(folder).latency_verdict == CLEAN

    found = find_or_measure(place.store, lambda take: _key(bench, reference, plan, take), compute, is_clean)
    own_ms = scale.latency.latency_p50_ms
    record = dataclasses.replace(read_shape(found.folder), reference_latency_p50_ms=own_ms)
    return record if found.fresh else dataclasses.replace(record, latency_alone_s=0.0)


def _shape_of_teacher(reference: ExportRecord, teacher: ModelRecord, latency: LatencyRecord) -> ShapeRecord:
    """The teacher's architecture, which is known from its file."""
    return ShapeRecord(
        channel_ratio=0.0,
        shape=shape_digest(reference.folder / ONNX_FILE),
        latency_p50_ms=latency.latency_p50_ms,
        latency_half_width=latency.latency_half_width,
        latency_verdict=latency.verdict,
        size_bytes=reference.size_bytes,
        num_params=teacher.num_params,
        macs=teacher.macs,
        latency_alone_s=latency.latency_alone_s,
        reference_latency_p50_ms=latency.latency_p50_ms,
    )


def _key(bench: Bench, reference: ExportRecord, plan: Mapping[str, int] | None, take: int) -> Key:
    candidate, dataset = bench.candidate, bench.dataset
    structured = candidate.prune.removes_channels
    return stage_key(
        "shape",
        version=VERSION,
        parents=[reference.onnx_sha256],
        student_model=candidate.network,
        model_source=source_digest(candidate.network),
        num_classes=dataset.num_classes,
        image_size=dataset.image_size,
        pruning_ratio=candidate.prune.pruning_ratio if structured else 0.0,
        pruning_of=candidate.prune.pruning_of if structured else "channels",
        processor=timed_on(candidate.measure),
        take=take,
        **_extra_key_parts(candidate, plan),
        **candidate.measure.key_parts(),
    )


def _extra_key_parts(candidate: Candidate, plan: Mapping[str, int] | None) -> dict[str, Any]:
    """Settings that change the shape; defaults are left out because keys of older stores lack them."""
    extra: dict[str, Any] = {} if plan is None else {"plan": dict(plan)}
    if candidate.prune.removes_channels and candidate.prune.pruning_criterion == "bn_scale":
        extra["pruning_criterion"] = "bn_scale"  # spares layers without BatchNorm
    if candidate.prune.prune_ignore:
        extra["prune_ignore"] = candidate.prune.prune_ignore
    if candidate.export.precision != "fp32":
        # int8_ptq and int8_qat differ in weights alone: one file shape, one measurement
        extra["precision"] = candidate.export.precision.partition("_")[0]
    if extra.get("precision") == "int8":
        extra |= vars(scheme_of(candidate.measure))
    return extra


def solve(share: Callable[[float], float], target: float) -> float:
    """Find the smallest channel ratio in [0, 1) at which `share` is at most `target`.

    `share` is what is left of the dense model at a ratio; it must fall as the ratio grows. Bisection finds the ratio to
    within 1 / 2^BISECTIONS.

    Raises:
        ValueError: if even the narrowest model is above the target.
    """
    low, high = 0.0, 1 - 2.0**-BISECTIONS
    if (least := share(high)) > target:
        raise ValueError(f"no channel ratio leaves a share of {target:.3g}: the narrowest model still has {least:.3g}.")
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) <= target else (middle, high)
    return high


class _Sketch:
    """An untrained student that can be built, pruned and measured at any channel ratio."""

    def __init__(
        self, bench: Bench, path: Path, timing: Callable[[Path], Measured], plan: Mapping[str, int] | None
    ) -> None:
        self.path, self._timing, self._plan = path, timing, plan
        self._candidate, self._dataset, self._place = bench.candidate, bench.dataset, bench.place
        self.alone_s = 0.0
        """Seconds for which its measurements had the node alone."""

    def channel_ratio(self) -> float:
        """Find the ratio of channels that `pruning_of` and `pruning_ratio` ask for."""
        wanted = self._candidate.prune
        if wanted.pruning_of == "channels":
            return wanted.pruning_ratio
        known: dict[float, float] = {}  # `solve` asks for ratio 0 every time, and each latency is a measurement

        def amount(ratio: float) -> float:
            if ratio not in known:
                known[ratio] = self._amount(wanted.pruning_of, ratio)
            return known[ratio]

        return solve(lambda ratio: amount(ratio) / amount(0.0), 1 - wanted.pruning_ratio)

    def measure(self, ratio: float) -> ShapeRecord:
        """Build, prune, export and time the student at one ratio."""
        with self._place.device_lock().shared():
            model = self._model(ratio)
            num_params, _, macs = count(model, self._dataset.image_size)
            size_bytes = self._export(model)
        took = self._timing(self.path).candidate
        self.alone_s += took.latency_alone_s
        return ShapeRecord(
            channel_ratio=ratio,
            shape=shape_digest(self.path),
            latency_p50_ms=took.latency_p50_ms,
            latency_half_width=took.latency_half_width,
            latency_verdict=took.verdict,
            size_bytes=size_bytes,
            num_params=num_params,
            macs=macs,
        )

    def _amount(self, what: str, ratio: float) -> float:
        if what == "macs":
            return count(self._model(ratio), self._dataset.image_size)[2]
        if what == "size":
            return self._export(self._model(ratio))
        return self.measure(ratio).latency_p50_ms

    def _model(self, ratio: float) -> torch.nn.Module:
        torch.manual_seed(0)  # equal random weights for every ratio, so that only the shape differs
        model = build_for(self._candidate.network, self._dataset)
        config = self._candidate.prune
        if config.removes_channels:
            cut_untrained(model, config, self._dataset, channel_ratio=ratio, plan=self._plan, must_remove=False)
        return model

    def _export(self, model: torch.nn.Module) -> int:
        size_bytes = export_untrained(
            model,
            mean=self._dataset.mean,
            std=self._dataset.std,
            image_size=self._dataset.image_size,
            class_names=self._dataset.class_names,
            recipe=self._candidate.recipe(),
            opset=self._candidate.export.opset,
            path=self.path,
        )
        if self._candidate.export.precision == "fp32":
            return size_bytes
        convert(self.path, self.path, self._candidate, self._dataset)
        return self.path.stat().st_size
