"""The chain of one candidate: data, teacher, shape, student, pruned and recovered, exported, measured.

Every stage is found in the store or made. Chains yield the untrained shape first, then every epoch that is trained;
what the store already holds yields nothing. Closing a chain, or a dead process, loses at most the running epoch.
"""

from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType

from trainables.config.candidate import Candidate
from trainables.config.limits import InfeasibleError, Limits
from trainables.records.stages import CandidateRecord, EpochRecord, ExportRecord, ModelRecord, ShapeRecord
from trainables.stages.candidate.from_scratch import train_from_scratch
from trainables.stages.export.qat import train_quantised
from trainables.stages.export.stage import export_model, export_teacher
from trainables.stages.measuring.finished_file import measure_file
from trainables.stages.measuring.untrained_shape import measure_shape
from trainables.stages.pruning.cuts import achieved, plan_cut, read_plan
from trainables.stages.pruning.recovery import recover
from trainables.stages.training.stage import Epochs
from trainables.stages.training.student import train_student
from trainables.stages.training.teacher import train_teacher
from trainables.stages.workspace import Bench, Workspace

Steps = Generator[ShapeRecord | EpochRecord, None, CandidateRecord]
Networks = Generator[ShapeRecord | EpochRecord, None, list[ModelRecord]]
NO_LIMITS = Limits()
NOTHING: Mapping[str, object] = MappingProxyType({})


def make_candidate(
    candidate: Candidate, place: Workspace, limits: Limits = NO_LIMITS, *, from_scratch: bool = False
) -> Steps:
    """Make one candidate, as far as the limits allow; yields its shape and epochs.

    Args:
        from_scratch: train the pruned shape from random weights instead: the control arm of pruning.

    Raises:
        InfeasibleError: if the shape cannot keep to the limits; nothing more is trained for it.
        ValueError: if the configuration cannot give a candidate (it would fail again).
    """
    chain = Chain(Bench.of(candidate, place))
    teacher = yield from chain.spend(train_teacher(chain.bench))
    reference = export_teacher(chain.bench, teacher)
    shape = chain.measure_shape(reference, teacher, limits)
    yield shape
    if not candidate.prune.shape_needs_weights:
        check_shape(shape, limits)
    if from_scratch:
        networks = yield from chain.train_shape(teacher, shape)
    else:
        networks = yield from chain.prune_student(teacher, reference, shape, limits)
    if candidate.export.precision == "int8_qat":
        networks.append((yield from chain.spend(train_quantised(chain.bench, teacher, networks[-1]))))
    more = {"from_scratch": True} if from_scratch else NOTHING
    files = export_model(chain.bench, networks[-1], candidate.recipe() | dict(more))
    return chain.finish("candidate", networks, teacher, files, reference)


class Chain:
    """The stages of one candidate on one bench; counts the seconds that training takes now."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._spent = 0.0
        """Seconds of training since the chain began; what its networks took beyond that was found in the store."""
        self._shape: ShapeRecord | None = None
        self._shape_alone_s = 0.0

    def measure_shape(
        self, reference: ExportRecord, teacher: ModelRecord, limits: Limits, *, plan: Mapping[str, int] | None = None
    ) -> ShapeRecord:
        """Measure the untrained shape or find it, and count the seconds for which other trials paused."""
        self._shape = measure_shape(self.bench, reference, teacher, plan=plan, brief=limits.max_latency_ms is None)
        self._shape_alone_s += self._shape.latency_alone_s
        return self._shape

    def spend(self, stage: Epochs) -> Epochs:
        """Pass a stage's epochs on, and count their seconds."""
        while True:
            try:
                epoch = next(stage)
            except StopIteration as end:
                model: ModelRecord = end.value
                return model
            self._spent += epoch.seconds
            yield epoch

    def prune_student(
        self, teacher: ModelRecord, reference: ExportRecord, shape: ShapeRecord, limits: Limits
    ) -> Networks:
        """Distil the student, prune and recover it; returns both networks.

        Where only the trained weights tell the pruned widths (`pruning_scope` other than `layer`), the first shape was
        only a forecast, to which no limit applies; the trained student's own is measured, yielded and checked before
        recovery.
        """
        bench, prune = self.bench, self.bench.candidate.prune
        student = yield from self.spend(train_student(bench, teacher))
        if prune.shape_needs_weights:
            plan = plan_cut(bench, student, channel_ratio=shape.channel_ratio)
            shape = self.measure_shape(reference, teacher, limits, plan=plan)
            yield shape
            if prune.pruning_steps == 1:  # recovery between cuts changes which channels go
                check_shape(shape, limits)
        if not bench.candidate.needs_training:
            return [teacher]
        pruned = yield from self.spend(recover(bench, teacher, student, channel_ratio=shape.channel_ratio))
        return [pruned] if student is teacher else [student, pruned]

    def train_shape(self, teacher: ModelRecord, shape: ShapeRecord) -> Networks:
        """Train the pruned shape from random weights; returns that network."""
        bench, ratio, plan = self.bench, shape.channel_ratio, None
        if bench.candidate.prune.shape_needs_weights:  # the champion's widths, whose training is not this one's cost
            student = yield from train_student(bench, teacher)
            pruned = yield from recover(bench, teacher, student, channel_ratio=ratio)
            plan = read_plan(pruned.folder)
        return [(yield from self.spend(train_from_scratch(bench, teacher, channel_ratio=ratio, plan=plan)))]

    def finish(
        self,
        stage: str,
        networks: Sequence[ModelRecord],
        teacher: ModelRecord,
        files: ExportRecord,
        reference: ExportRecord,
    ) -> CandidateRecord:
        """Measure the file of the last network, and put down what came of all of them."""
        is_teacher = stage == "teacher"
        measurement, stands_on = measure_file(
            self.bench, networks[-1], files, reference, shape=self._shape, renew_scale=is_teacher
        )
        own = networks if is_teacher else [model for model in networks if model is not teacher]
        train_time_s = sum(model.train_time_s for model in own)
        needed_s = train_time_s if is_teacher else teacher.train_time_s + train_time_s
        models = dict.fromkeys((teacher.key, *(model.key for model in own)))
        return CandidateRecord(
            stage=stage,
            export=files,
            measurement=measurement,
            achieved={} if is_teacher else achieved(self.bench.candidate, networks[-1]),
            curve=tuple(epoch for model in own for epoch in model.curve),
            num_val=self.bench.dataset.num_val,
            num_test=self.bench.dataset.num_test,
            train_time_s=train_time_s,
            reused_time_s=max(0.0, needed_s - self._spent),
            shape_alone_s=self._shape_alone_s,
            keys=tuple(dict.fromkeys((*models, reference.key, files.key, *stands_on))),
        )


def check_shape(shape: ShapeRecord, limits: Limits) -> None:
    """Return if the untrained shape keeps to the limits.

    Raises:
        InfeasibleError: if it cannot, whatever it learns.
    """
    measured = {"latency_p50_ms": shape.latency_p50_ms, "size_bytes": shape.size_bytes, "macs": shape.macs}
    excess = limits.excess(measured)
    if any(over > 0 for over in excess.values()):
        raise InfeasibleError(excess, measured | {"latency_alone_s": shape.latency_alone_s})
