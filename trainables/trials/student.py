"""Tune trainable for distillation alone: data -> teacher -> student."""

from collections.abc import Generator
from typing import Any

from trainables.config.candidate import CandidateConfig
from trainables.records.stages import EpochRecord, ModelRecord
from trainables.stages.data import prepared
from trainables.stages.data.on_device import load_images
from trainables.stages.training.student import student
from trainables.stages.training.teacher import teacher
from trainables.stages.workspace import Workspace
from trainables.trials.base import StageTrial


class StudentTrial(StageTrial):
    """Distils one dense student; the teacher is found in the store or made first."""

    def begin(self, config: CandidateConfig, place: Workspace) -> Generator[EpochRecord, None, ModelRecord]:
        """Teacher, then student."""
        dataset = prepared.prepare(config.data, place.data_dir)
        images = load_images(dataset, place.device)
        taught_by = yield from teacher(config, dataset, images, place)
        return (yield from student(config, dataset, images, taught_by, place))

    def finish(self, record: ModelRecord) -> dict[str, Any]:
        """Key, size and last accuracy of the model in the store."""
        return model_result(record)


def model_result(record: ModelRecord) -> dict[str, Any]:
    """A trained network in numbers: where it lies, how large it is, its validation accuracy (0 to 1, eager)."""
    result = {"key": record.key, "num_params": record.num_params, "macs": record.macs}
    return result | ({"val_accuracy": record.curve[-1].val_accuracy} if record.curve else {})
