"""The student is pruned, then recovered by a few more epochs of distillation."""

from collections.abc import Generator
from pathlib import Path

from trainables.configs import CandidateConfig
from trainables.records import DatasetRecord, EpochRecord, ModelRecord, read_model
from trainables.stages.compute import move
from trainables.stages.prune import apply_masks, masks, prune
from trainables.stages.student import Distillation
from trainables.stages.tensors import Images
from trainables.stages.trained import write_model
from trainables.stages.training import Loop, recalibrate, train
from trainables.stages.workspace import Workspace, load_model
from trainables.store import Key, stage_key

VERSION = 2


def recovery_key(config: CandidateConfig, student: ModelRecord, *, channel_ratio: float) -> Key:
    """Where the pruned and recovered student of this configuration lies in the store."""
    return stage_key(
        "recovery",
        version=VERSION,
        parents=[student.key],
        channel_ratio=channel_ratio,
        **vars(config.prune.canonical()),
    )


def recovery(
    config: CandidateConfig,
    dataset: DatasetRecord,
    images: Images,
    teacher: ModelRecord,
    student: ModelRecord,
    place: Workspace,
    *,
    channel_ratio: float,
) -> Generator[EpochRecord, None, ModelRecord]:
    """Prune the student and train what is left, or find it in the store; yields the recovery epochs.

    `channel_ratio` is what `structured` removes of every layer's channels: `pruning_ratio`, or what the shape stage
    found for another `pruning_of`.

    Zeroed weights stay zero: the masks are put back after every step. Ratio 0 keeps every weight and still trains
    the recovery epochs, so that all candidates of a sweep get the same budget.
    """
    key = recovery_key(config, student, channel_ratio=channel_ratio)

    def compute(folder: Path) -> Generator[EpochRecord, None, None]:
        model = load_model(student)
        prune(
            model,
            method=config.prune.pruning_method,
            ratio=channel_ratio if config.prune.pruning_method == "structured" else config.prune.pruning_ratio,
            image_size=dataset.image_size,
            num_classes=dataset.num_classes,
        )
        move(model, images.mean.device, image_size=dataset.image_size)  # masks lie where the weights will
        zeros = masks(model) if config.prune.pruning_method == "l1_unstructured" else {}
        loop = Loop(
            stage="recovery",
            epochs=config.prune.recovery_epochs,
            learning_rate=config.student.learning_rate * config.prune.recovery_learning_rate_factor,
            training=config.training,
            augment=config.augment,
            first_view=config.student.student_epochs,
        )
        lesson = Distillation.of(config, dataset, images, teacher, place)
        lease = place.lease()
        curve = yield from train(
            model, loop, images, lesson, folder, after_step=lambda: apply_masks(model, zeros), turn=lease.shared
        )
        if not curve:  # nothing has re-estimated BatchNorm since the cut
            recalibrate(model, loop, images)
        write_model(model, folder, key=key, name=config.student.student_model, dataset=dataset, curve=curve)

    return read_model((yield from place.store.obtain(key, compute)))
