"""The finished student is trained a little further with INT8's rounding in the loop, taught by the same teacher."""

from collections.abc import Generator
from pathlib import Path

from trainables.config.candidate import CandidateConfig
from trainables.records.stages import DatasetRecord, EpochRecord, ModelRecord, read_model
from trainables.stages.data.on_device import Images
from trainables.stages.export import fake_quantize
from trainables.stages.export.scheme import scheme_for
from trainables.stages.models.placement import move
from trainables.stages.models.stored import load_model, write_model
from trainables.stages.pruning.zeros import apply_masks, masks
from trainables.stages.training.lessons import Distillation
from trainables.stages.training.loop import Loop, train
from trainables.stages.workspace import Workspace
from trainables.store.results import Key, stage_key

VERSION = 2
RATE_FACTOR = 0.1
"""Peak learning rate as a multiple of the student's: rounding is adapted to, not learned from the start."""


def qat_key(config: CandidateConfig, model: ModelRecord) -> Key:
    """Where the quantisation-aware student of this configuration lies in the store."""
    return stage_key(
        "qat",
        version=VERSION,
        parents=[model.key],
        qat_epochs=config.export.qat_epochs,
        **vars(scheme_for(config.measure.latency_runtime)),
    )


def qat(
    config: CandidateConfig,
    dataset: DatasetRecord,
    images: Images,
    teacher: ModelRecord,
    pruned: ModelRecord,
    place: Workspace,
) -> Generator[EpochRecord, None, ModelRecord]:
    """Train `pruned` for `qat_epochs` with fake quantisation, or find it in the store; yields the epochs.

    The result holds float weights; `exported` writes and quantises them as those of any other network. Zeroed weights
    stay zero.
    """
    key = qat_key(config, pruned)

    def compute(folder: Path) -> Generator[EpochRecord, None, None]:
        model = load_model(pruned)
        move(model, images.mean.device, image_size=dataset.image_size)  # masks lie where the weights will
        zeros = {
            name.replace(".weight", ".parametrizations.weight.original"): zero
            for name, zero in masks(model, config.prune.canonical().pruning_method).items()
        }
        inserted = fake_quantize.insert(model, scheme_for(config.measure.latency_runtime))
        loop = Loop(
            stage="qat",
            epochs=config.export.qat_epochs,
            learning_rate=config.student.learning_rate * RATE_FACTOR,
            training=config.training,
            augment=config.augment,
            first_view=config.student.student_epochs + config.prune.recovery_epochs,
        )
        lesson = Distillation.of(config, dataset, images, teacher, place)
        turn = place.device_lock().shared
        curve = yield from train(
            model, loop, images, lesson, folder, after_step=lambda: apply_masks(model, zeros), turn=turn
        )
        fake_quantize.remove(model, inserted)
        write_model(model, folder, key=key, name=config.student.student_model, dataset=dataset, curve=curve)

    return read_model((yield from place.store.obtain(key, compute)))
