"""Tune trainable for the teacher: made once per sweep, and every trial's reference."""

from collections.abc import Generator

from trainables.config.candidate import CandidateConfig
from trainables.records.stages import CandidateRecord, EpochRecord
from trainables.stages.candidate.chain import teacher_candidate
from trainables.stages.workspace import Workspace
from trainables.trials.base import OutboxTrial


class TeacherTrial(OutboxTrial):
    """data -> teacher -> exported -> measured against itself."""

    stage = "teacher"

    def begin(self, config: CandidateConfig, place: Workspace) -> Generator[EpochRecord, None, CandidateRecord]:
        """Train the teacher, or find it."""
        return teacher_candidate(config, place)
