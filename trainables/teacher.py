"""Tune trainable for the teacher: made once per sweep, and every trial's reference."""

from collections.abc import Generator

from trainables.configs import CandidateConfig
from trainables.records import CandidateRecord, EpochRecord
from trainables.stages.candidate import teacher_candidate
from trainables.stages.workspace import Workspace
from trainables.trial import OutboxTrial


class TeacherTrial(OutboxTrial):
    """data -> teacher -> exported -> measured against itself."""

    stage = "teacher"

    def begin(self, config: CandidateConfig, place: Workspace) -> Generator[EpochRecord, None, CandidateRecord]:
        """Train the teacher, or find it."""
        return teacher_candidate(config, place)
