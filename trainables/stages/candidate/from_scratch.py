"""The control arm of pruning: the pruned shape, trained from random weights for the champion's whole budget."""

from collections.abc import Generator, Mapping
from pathlib import Path

import torch

from trainables.config.candidate import CandidateConfig
from trainables.config.limits import Limits
from trainables.records.stages import DatasetRecord, EpochRecord, ModelRecord, ShapeRecord, read_model
from trainables.stages.candidate.chain import NO_LIMITS, Steps, check_shape, finished, spending
from trainables.stages.data import prepared
from trainables.stages.data.on_device import Images, load_images
from trainables.stages.export.qat import qat
from trainables.stages.export.stage import reference_export
from trainables.stages.measuring.untrained_shape import shaped
from trainables.stages.models.placement import move
from trainables.stages.models.stored import build_for, write_model
from trainables.stages.pruning.cuts import cut_untrained, key_parts, read_plan
from trainables.stages.pruning.recovery import recovery
from trainables.stages.pruning.zeros import apply_masks, masks
from trainables.stages.training.lessons import Distillation
from trainables.stages.training.loop import Loop, recalibrate, seed_for, train
from trainables.stages.training.student import student
from trainables.stages.training.teacher import teacher
from trainables.stages.workspace import Workspace
from trainables.store.results import Key, stage_key

VERSION = 3


def scratch_key(
    config: CandidateConfig,
    dataset: DatasetRecord,
    teacher: ModelRecord,
    *,
    channel_ratio: float,
    plan: Mapping[str, int] | None = None,
) -> Key:
    """Where the pruned shape of this configuration, trained from random weights, lies in the store."""
    return stage_key(
        "scratch",
        version=VERSION,
        parents=[dataset.fingerprint, teacher.key],
        channel_ratio=channel_ratio,
        **({} if plan is None else {"plan": dict(plan)}),
        **vars(config.augment),
        **vars(config.training.on("cpu")),
        **vars(config.student.canonical()),
        **key_parts(config.prune),
    )


def scratch(
    config: CandidateConfig,
    dataset: DatasetRecord,
    images: Images,
    teacher: ModelRecord,
    place: Workspace,
    *,
    channel_ratio: float,
    plan: Mapping[str, int] | None = None,
) -> Generator[EpochRecord, None, ModelRecord]:
    """Train the pruned shape from random weights, or find it in the store; yields its epochs.

    The untrained student is pruned as a trained one would be, then distilled with the same loss for student_epochs +
    recovery_epochs under one schedule that peaks at learning_rate. `structured` removes the same number of channels
    from a layer whatever their weights are, so this is the champion's shape: a narrower dense student of about the
    same latency is this very network. Which channels (or, with `l1_unstructured`, which weights) go is chance here.
    Weights, batch order and views are those that the champion's student of the same seed begins with, so that the two
    can be compared in pairs. Never pretrained (cf. Liu et al., arXiv:1810.05270).

    Args:
        plan: the champion's widths, which a `global` pruning found in its trained weights.
    """
    key = scratch_key(config, dataset, teacher, channel_ratio=channel_ratio, plan=plan)

    def compute(folder: Path) -> Generator[EpochRecord, None, None]:
        torch.manual_seed(seed_for(config.training.seed, "student", "weights"))
        model = build_for(config.student.student_model, dataset)
        cut_untrained(model, config.prune, dataset, channel_ratio=channel_ratio, plan=plan)
        move(model, images.mean.device, image_size=dataset.image_size)  # masks lie where the weights will
        zeros = masks(model, config.prune.canonical().pruning_method)
        loop = Loop(
            stage="student",
            epochs=config.student.student_epochs + config.prune.recovery_epochs,
            learning_rate=config.student.learning_rate,
            training=config.training,
            augment=config.augment,
        )
        lesson = Distillation.of(config, dataset, images, teacher, place)
        turn = place.device_lock().shared
        curve = yield from train(
            model, loop, images, lesson, folder, after_step=lambda: apply_masks(model, zeros), turn=turn
        )
        if not curve:  # nothing has estimated BatchNorm yet
            recalibrate(model, loop, images)
        write_model(model, folder, key=key, name=config.student.student_model, dataset=dataset, curve=curve)

    return read_model((yield from place.store.obtain(key, compute)))


def scratch_candidate(config: CandidateConfig, place: Workspace, limits: Limits = NO_LIMITS) -> Steps:
    """data -> teacher -> shape -> trained from scratch -> exported -> measured; yields as `candidate` does.

    Raises:
        InfeasibleError: if the shape cannot keep to the limits; nothing has been trained for it.
        ValueError: if the configuration cannot give a candidate (it would fail again).
    """
    config = config.on(place.device)
    dataset = prepared.remembered(config.data, place.data_dir)
    images = load_images(dataset, place.device)
    teacher_model, teacher_spent = yield from spending(teacher(config, dataset, images, place))
    reference = yield from reference_export(config, dataset, teacher_model, place)
    shape: ShapeRecord = yield from shaped(config, dataset, reference, place)
    yield shape
    plan = None
    if config.prune.shape_needs_weights:
        dense, _ = yield from spending(student(config, dataset, images, teacher_model, place))
        ratio = shape.channel_ratio
        pruned, _ = yield from spending(
            recovery(config, dataset, images, teacher_model, dense, place, channel_ratio=ratio)
        )
        plan = read_plan(pruned.folder)
    else:
        check_shape(shape, limits)
    model, spent = yield from spending(
        scratch(config, dataset, images, teacher_model, place, channel_ratio=shape.channel_ratio, plan=plan)
    )
    final, qat_spent = model, 0.0
    if config.export.precision == "int8_qat":
        final, qat_spent = yield from spending(qat(config, dataset, images, teacher_model, model, place))
    stages, spent = list(dict.fromkeys((model, final))), teacher_spent + spent + qat_spent
    more = {"from_scratch": True}
    return (yield from finished(config, dataset, teacher_model, stages, reference, place, spent=spent, more=more))
