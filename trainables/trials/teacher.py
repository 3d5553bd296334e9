"""The Tune trainable that makes the teacher: once per sweep, as the reference of every trial."""

from collections.abc import Generator

from trainables.records.stages import CandidateRecord, EpochRecord
from trainables.stages.candidate.teacher import make_teacher
from trainables.stages.workspace import Workspace
from trainables.trials.base import ChainTrial
from trainables.trials.task import TrialTask


class TeacherTrial(ChainTrial):
    """data -> teacher -> exported -> measured against itself."""

    def begin(self, task: TrialTask, place: Workspace) -> Generator[EpochRecord, None, CandidateRecord]:
        """Start training the teacher, or take it from the store."""
        return make_teacher(task.candidate, place)
