"""The Tune trainable of a whole candidate."""

from collections.abc import Generator

from trainables.config.candidate import CandidateConfig
from trainables.records.stages import CandidateRecord, EpochRecord, ShapeRecord
from trainables.stages.candidate.chain import candidate
from trainables.stages.candidate.from_scratch import scratch_candidate
from trainables.stages.workspace import Workspace
from trainables.trials.base import OutboxTrial


class CandidateTrial(OutboxTrial):
    """data -> teacher -> student -> pruned and recovered -> exported -> measured.

    With `from_scratch` in the Tune config the pruned shape is trained from random weights instead.
    """

    stage = "candidate"

    def begin(
        self, config: CandidateConfig, place: Workspace
    ) -> Generator[ShapeRecord | EpochRecord, None, CandidateRecord]:
        """The whole chain, as far as the limits in the Tune config allow."""
        chain = scratch_candidate if self.config.get("from_scratch") else candidate
        return chain(config, place, self._limits())
