"""Tune trainable for the teacher: made once per sweep, and every trial's reference."""

from collections.abc import Generator

from trainables.records.stages import CandidateRecord, EpochRecord
from trainables.stages.candidate.teacher import make_teacher
from trainables.stages.workspace import Workspace
from trainables.trials.base import ChainTrial
from trainables.trials.task import TrialTask


class TeacherTrial(ChainTrial):
    """data -> teacher -> exported -> measured against itself."""

    def begin(self, task: TrialTask, place: Workspace) -> Generator[EpochRecord, None, CandidateRecord]:
        """Train the teacher, or find it."""
        return make_teacher(task.candidate, place)
