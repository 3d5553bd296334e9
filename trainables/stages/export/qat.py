"""Quantisation-aware training: train the finished student further with INT8 rounding, taught by the same teacher."""

from pathlib import Path

from trainables.config.candidate import Candidate
from trainables.records.stages import ModelRecord
from trainables.stages.export import fake_quantize
from trainables.stages.export.scheme import scheme_of
from trainables.stages.models.placement import move
from trainables.stages.models.stored import load_model
from trainables.stages.pruning.methods import masks
from trainables.stages.training.lessons import Distillation
from trainables.stages.training.loop import Loop
from trainables.stages.training.stage import Epochs, Made, fit, obtain_model
from trainables.stages.workspace import Bench
from trainables.store.results import Key, stage_key

VERSION = 5
# Peak learning rate as a multiple of the student's: a trained network adapts to rounding, it does not start anew.
RATE_FACTOR = 0.1


def qat_key(candidate: Candidate, model: ModelRecord) -> Key:
    """The store key of this candidate's quantisation-aware student."""
    return stage_key(
        "qat",
        version=VERSION,
        parents=[model.key],
        qat_epochs=candidate.export.qat_epochs,
        # the key of a trained student says how it is taught; that of the uncut teacher does not
        **(candidate.data.unlabeled_key() if candidate.needs_training else candidate.teaching_key()),
        **vars(scheme_of(candidate.measure)),
    )


def train_quantised(bench: Bench, teacher: ModelRecord, pruned: ModelRecord) -> Epochs:
    """Train `pruned` for `qat_epochs` with fake quantisation, or find the result in the store; yield the epochs.

    The result holds float weights, which `export_model` writes and quantises like those of any other network. Zeroed
    weights stay zero.
    """
    candidate, images = bench.candidate, bench.images

    def make(folder: Path) -> Made:
        model = load_model(pruned)
        move(model, images.mean.device, image_size=images.image_size)  # masks lie where the weights will
        # `insert` moves each weight into a parametrization, so the masks need its new name
        zeros = {
            name.replace(".weight", ".parametrizations.weight.original"): zero
            for name, zero in masks(model, candidate.prune.pruning_method).items()
        }
        inserted = fake_quantize.insert(model, scheme_of(candidate.measure))
        loop = Loop(
            stage="qat",
            epochs=candidate.export.qat_epochs,
            learning_rate=candidate.student.learning_rate * RATE_FACTOR,
            training=candidate.training,
            augment=candidate.augment,
        )
        curve = yield from fit(bench, model, loop, Distillation.of(bench, teacher, loop), folder, zeros)
        fake_quantize.remove(model, inserted)
        return model, curve

    return obtain_model(bench, qat_key(candidate, pruned), candidate.network, make)
