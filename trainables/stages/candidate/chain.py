"""One candidate, from data to measured file, in one process and without Ray.

python -m trainables.stages.candidate --dataset digits --teacher-model alexnet --student-model alexnet_small
"""

from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Never, TypeVar

from trainables.config.candidate import CandidateConfig
from trainables.config.limits import InfeasibleError, Limits
from trainables.records.stages import (
    CandidateRecord,
    DatasetRecord,
    EpochRecord,
    ExportRecord,
    ModelRecord,
    ShapeRecord,
)
from trainables.stages.data import prepared
from trainables.stages.data.on_device import load_images
from trainables.stages.export.qat import qat
from trainables.stages.export.stage import exported, recipe, reference_export
from trainables.stages.measuring.finished_file import measured
from trainables.stages.measuring.untrained_shape import shaped
from trainables.stages.pruning.cuts import planned
from trainables.stages.pruning.recovery import recovery
from trainables.stages.training.student import student
from trainables.stages.training.teacher import teacher
from trainables.stages.workspace import Workspace

Epochs = Generator[EpochRecord, None, CandidateRecord]
Steps = Generator[ShapeRecord | EpochRecord, None, CandidateRecord]
NO_LIMITS = Limits()
NOTHING: Mapping[str, object] = MappingProxyType({})
Model = TypeVar("Model")


def teacher_candidate(config: CandidateConfig, place: Workspace) -> Epochs:
    """The teacher as everybody's reference: trained, exported, measured against itself; yields its epochs."""
    config = config.on(place.device)
    dataset = prepared.remembered(config.data, place.data_dir)
    model, spent = yield from spending(teacher(config, dataset, load_images(dataset, place.device), place))
    made_by = recipe(config, dataset, "teacher")
    files = yield from reference_export(config, dataset, model, place)
    measurement, stands_on = yield from measured(config, dataset, model, files, files, place)
    return CandidateRecord(
        stage="teacher",
        params=made_by | vars(config.measure),
        export=files,
        measurement=measurement,
        curve=model.curve,
        num_val=dataset.num_val,
        num_test=dataset.num_test,
        train_time_s=model.train_time_s,
        reused_time_s=max(0.0, model.train_time_s - spent),
        keys=(model.key, files.key, *stands_on),
    )


def candidate(config: CandidateConfig, place: Workspace, limits: Limits = NO_LIMITS) -> Steps:
    """data -> teacher -> shape -> student -> pruned and recovered (-> quantised in training) -> exported -> measured.

    Where only the trained weights tell the pruned widths (`pruning_scope` global), the first shape is an estimate that
    refuses nobody; the trained student's own is measured, yielded and checked before it is recovered.

    Yields the untrained shape first, then every epoch trained. Stages that the store already holds yield nothing.
    Closing the generator, or a dead process, loses at most the running epoch.

    Raises:
        InfeasibleError: if the shape cannot keep to the limits; nothing more is trained for it.
        ValueError: if the configuration cannot give a candidate (it would fail again).
    """
    config = config.on(place.device)
    dataset: DatasetRecord = prepared.remembered(config.data, place.data_dir)
    images = load_images(dataset, place.device)
    teacher_model, teacher_spent = yield from spending(teacher(config, dataset, images, place))
    reference = yield from reference_export(config, dataset, teacher_model, place)
    shape = yield from shaped(config, dataset, reference, place)
    yield shape
    if not config.prune.shape_needs_weights:
        check_shape(shape, limits)
    student_model, student_spent = yield from spending(student(config, dataset, images, teacher_model, place))
    if config.prune.shape_needs_weights:
        ratio = shape.channel_ratio
        plan = yield from planned(config.prune, dataset, images, student_model, place, channel_ratio=ratio)
        shape = yield from shaped(config, dataset, reference, place, plan=plan)
        yield shape
        if config.prune.pruning_steps == 1:  # recovery between cuts changes which channels go
            check_shape(shape, limits)
    pruned_model, recovery_spent = yield from spending(
        recovery(config, dataset, images, teacher_model, student_model, place, channel_ratio=shape.channel_ratio)
    )
    final, qat_spent = pruned_model, 0.0
    if config.export.precision == "int8_qat":
        final, qat_spent = yield from spending(qat(config, dataset, images, teacher_model, pruned_model, place))
    spent = teacher_spent + student_spent + recovery_spent + qat_spent
    stages = list(dict.fromkeys((student_model, pruned_model, final)))
    return (yield from finished(config, dataset, teacher_model, stages, reference, place, spent=spent))


def finished(
    config: CandidateConfig,
    dataset: DatasetRecord,
    teacher_model: ModelRecord,
    stages: Sequence[ModelRecord],
    reference: ExportRecord,
    place: Workspace,
    *,
    spent: float,
    more: Mapping[str, object] = NOTHING,
) -> Generator[Never, None, CandidateRecord]:
    """Export and measure the last of a candidate's trained stages, and put down what came of all of them.

    Args:
        spent: training seconds of now, teacher's included; what the stages took beyond that was found in the store.
        more: what the recipe says besides the configuration.
    """
    made_by = recipe(config, dataset, "candidate") | dict(more)
    files = yield from exported(config, dataset, stages[-1], made_by, place)
    measurement, stands_on = yield from measured(config, dataset, stages[-1], files, reference, place)
    train_time_s = sum(model.train_time_s for model in stages)
    return CandidateRecord(
        stage="candidate",
        params=made_by | vars(config.measure),
        export=files,
        measurement=measurement,
        curve=tuple(epoch for model in stages for epoch in model.curve),
        num_val=dataset.num_val,
        num_test=dataset.num_test,
        train_time_s=train_time_s,
        reused_time_s=max(0.0, teacher_model.train_time_s + train_time_s - spent),
        keys=(
            *(model.key for model in (teacher_model, *stages)),
            *(reference.key, files.key, *stands_on),
        ),
    )


def check_shape(shape: ShapeRecord, limits: Limits) -> None:
    """Return if the untrained shape keeps to the limits.

    Raises:
        InfeasibleError: if it cannot, whatever it learns.
    """
    measured = {"latency_p50_ms": shape.latency_p50_ms, "size_bytes": shape.size_bytes, "macs": shape.macs}
    excess = limits.excess(measured)
    if any(over > 0 for over in excess.values()):
        raise InfeasibleError(excess, measured)


def spending(stage: Generator[EpochRecord, None, Model]) -> Generator[EpochRecord, None, tuple[Model, float]]:
    """Pass a stage's epochs on; return its result and the seconds that were really trained now."""
    spent = 0.0
    while True:
        try:
            epoch = next(stage)
        except StopIteration as end:
            return end.value, spent
        spent += epoch.seconds
        yield epoch
