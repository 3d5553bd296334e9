"""Time a file beside the teacher's, and find what was measured before; measure the teacher's own latency on a machine.

The teacher's own is one number, to put all files of a sweep on one scale. No latency is corrected by it; the ratio of a
file to the teacher comes from their own alternation.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx

from trainables.config.candidate import MeasureConfig
from trainables.files import write_text
from trainables.layout import ONNX_FILE, RECORD
from trainables.records.encoding import read_record, to_json
from trainables.records.latency import CLEAN, HALF_WIDTH, KNOWN_SHARE, LatencyRecord
from trainables.records.stages import ExportRecord, ShapeRecord
from trainables.stages.measuring.clean_room import measure_apart
from trainables.stages.measuring.process import Job, Measured
from trainables.stages.models.devices.elsewhere import facts_of
from trainables.stages.models.devices.gpu import gpu_name
from trainables.stages.models.devices.processor import processor_name
from trainables.stages.runtimes.base import RUNTIMES, Artifact
from trainables.stages.workspace import Workspace
from trainables.store.results import Key, Store, stage_key

SCALE_VERSION = 4
THROUGHPUT_BATCH = 64
TAKES = 3  # at most this often a result that is not clean is measured anew when it is found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A measurement in the store."""

    folder: Path
    keys: tuple[Key, ...]
    """Its key, and before it those of earlier takes that were not clean: takes are found by counting."""
    fresh: bool
    """Whether it was measured now."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed:
    """A file timed beside the teacher's, and where the store holds that."""

    took: Measured
    keys: tuple[Key, ...]

    @property
    def latency(self) -> LatencyRecord:
        """The file's own latency."""
        return self.took.candidate


def time_beside(
    measure: MeasureConfig,
    path: Path,
    reference: ExportRecord,
    place: Workspace,
    *,
    known: ShapeRecord | None = None,
    throughput: bool = True,
) -> Measured:
    """Measure one image through `path` in alternation with the reference's file, alone on the node.

    A file of a shape that was measured before needs a quarter of the time: it differs by noise alone. If it is off by
    more, it is measured again, in all of the time.

    Args:
        known: the clean measurement of a file of the same shape; None if there is none.
        throughput: measure images per second in calls of `THROUGHPUT_BATCH` images, too.
    """
    job = Job(
        candidate=Artifact(onnx=path),
        reference=Artifact(onnx=reference.folder / ONNX_FILE),
        runtime=measure.latency_runtime,
        threads=measure.latency_threads,
        seconds=measure.latency_seconds,
        attempts=measure.latency_max_attempts,
        throughput_batch=THROUGHPUT_BATCH if throughput else None,
        address=measure.measure_on,
    )
    place.make_room()
    on_gpu = RUNTIMES[measure.latency_runtime].on_gpu
    lock = place.device_lock(on_gpu=on_gpu, elsewhere=measure.measure_on)
    if known is None:
        return measure_apart(job, lock)
    first = measure_apart(dataclasses.replace(job, seconds=KNOWN_SHARE * job.seconds), lock)
    if not needs_another(first.candidate, known):
        return first
    again = measure_apart(job, lock)
    candidate = dataclasses.replace(
        again.candidate,
        latency_attempts=first.candidate.latency_attempts + again.candidate.latency_attempts,
        latency_alone_s=first.candidate.latency_alone_s + again.candidate.latency_alone_s,
    )
    return dataclasses.replace(again, candidate=candidate)


def needs_another(latency: LatencyRecord, known: ShapeRecord) -> bool:
    """Whether a short measurement does not do: it is doubtful in itself, or off its shape's p50 by more than noise.

    Noise is the 95 % interval of the difference, and 2 % for what differs from process to process. One that was
    disturbed has had its attempts.
    """
    if latency.latency_disturbed:
        return False
    noise = float((latency.latency_half_width**2 + known.latency_half_width**2) ** 0.5) + HALF_WIDTH
    return bool(latency.latency_doubt) or abs(latency.latency_p50_ms / known.latency_p50_ms - 1) > noise


def find_or_measure(
    store: Store,
    key_of: Callable[[int], Key],
    compute: Callable[[Path], None],
    is_clean: Callable[[Path], bool],
    *,
    again: bool = True,
) -> Found:
    """Find the newest take in the store; measure if there is none, or if none is clean and `TAKES` are not used up.

    Args:
        key_of: the store key of each take, counted from 0.
        compute: writes the record of a take into a folder of the store.
        again: whether a take that is not clean is followed by another.
    """
    fresh = False

    def run(folder: Path) -> None:
        nonlocal fresh
        fresh = True
        compute(folder)

    keys = [key_of(0)]
    folder = store.once(keys[0], run)
    while not fresh and not is_clean(folder) and len(keys) < TAKES:
        following = key_of(len(keys))
        if (found := store.find(following)) is None and not again:
            break
        keys.append(following)
        folder = found or store.once(following, run)
    return Found(folder=folder, keys=tuple(keys), fresh=fresh)


def find_scale(measure: MeasureConfig, reference: ExportRecord, place: Workspace, *, renew: bool = False) -> Timed:
    """Find the scale of machines like this one, or measure the first.

    Args:
        renew: measure the teacher once more if its latency was not clean. Done when a sweep begins, and not later: all
            files of a sweep are on one scale.
    """

    def key_of(take: int) -> Key:
        return stage_key(
            "scale",
            version=SCALE_VERSION,
            parents=[reference.onnx_sha256],
            processor=timed_on(measure),
            take=take,
            **measure.key_parts(),
        )

    def compute(folder: Path) -> None:
        # the reference beside itself: its blocks come as often as a candidate's
        write_text(folder / RECORD, to_json(time_beside(measure, reference.folder / ONNX_FILE, reference, place)))

    return find_timed(place.store, key_of, compute, again=renew)


def find_timed(
    store: Store, key_of: Callable[[int], Key], compute: Callable[[Path], None], *, again: bool = True
) -> Timed:
    """`find_or_measure` for what `time_beside` returns; `latency_alone_s` is 0 if it was found."""

    def is_clean(folder: Path) -> bool:
        return read_record(Measured, folder).candidate.verdict == CLEAN

    found = find_or_measure(store, key_of, compute, is_clean, again=again)
    took = read_record(Measured, found.folder)
    if not found.fresh:
        took = dataclasses.replace(took, candidate=dataclasses.replace(took.candidate, latency_alone_s=0.0))
    return Timed(took=took, keys=found.keys)


def shape_digest(path: Path) -> str:
    """A digest of an ONNX file's graph without the numbers of its weights: files that share it are equally fast."""
    graph = onnx.load(path, load_external_data=False).graph
    digest = hashlib.sha256()
    for node in graph.node:
        plain = [
            (attribute.name, "" if attribute.HasField("t") else attribute.SerializeToString(deterministic=True).hex())
            for attribute in node.attribute
        ]
        digest.update(repr((node.domain, node.op_type, list(node.input), list(node.output), plain)).encode())
    for tensor in sorted(graph.initializer, key=lambda tensor: tensor.name):
        digest.update(repr((tensor.name, tensor.data_type, list(tensor.dims))).encode())
    return digest.hexdigest()[:12]


def timed_on(measure: MeasureConfig) -> str:
    """The hardware that a latency is valid for, on this machine or the one elsewhere; raises like `facts_of`."""
    return hardware(measure.latency_runtime) if measure.measure_on is None else facts_of(measure.measure_on).name


def hardware(runtime: str) -> str:
    """The hardware that a latency in a runtime of `runtimes.base.RUNTIMES` is valid for: processor, and GPU if used."""
    gpu = gpu_name() if RUNTIMES[runtime].on_gpu else ""
    return f"{processor_name()}, {gpu}" if gpu else processor_name()
