"""Tune trainable for pruning and recovery alone: data -> teacher -> student -> pruned and recovered."""

from collections.abc import Generator
from typing import Any

from trainables.config.candidate import CandidateConfig
from trainables.records.stages import EpochRecord, ModelRecord
from trainables.stages.data import prepared
from trainables.stages.data.on_device import load_images
from trainables.stages.export.stage import reference_export
from trainables.stages.measuring.untrained_shape import shaped
from trainables.stages.pruning.recovery import recovery
from trainables.stages.training.student import student
from trainables.stages.training.teacher import teacher
from trainables.stages.workspace import Workspace
from trainables.trials.base import StageTrial
from trainables.trials.student import model_result


class PruneTrial(StageTrial):
    """Prunes and recovers one student; teacher and student are found in the store or made first."""

    def begin(self, config: CandidateConfig, place: Workspace) -> Generator[EpochRecord, None, ModelRecord]:
        """Teacher, student, then pruning and recovery."""
        dataset = prepared.prepare(config.data, place.data_dir)
        images = load_images(dataset, place.device)
        taught_by = yield from teacher(config, dataset, images, place)
        dense = yield from student(config, dataset, images, taught_by, place)
        reference = yield from reference_export(config, dataset, taught_by, place)
        shape = yield from shaped(config, dataset, reference, place)
        ratio = shape.channel_ratio
        return (yield from recovery(config, dataset, images, taught_by, dense, place, channel_ratio=ratio))

    def finish(self, record: ModelRecord) -> dict[str, Any]:
        """Key, size and last accuracy of the model in the store."""
        return model_result(record)
