"""The Tune trainable of a whole candidate."""

from trainables.stages.candidate.chain import Steps, make_candidate
from trainables.stages.workspace import Workspace
from trainables.trials.base import ChainTrial
from trainables.trials.task import TrialTask


class CandidateTrial(ChainTrial):
    """data -> teacher -> student -> pruned and recovered -> exported -> measured, or its control from scratch."""

    def begin(self, task: TrialTask, place: Workspace) -> Steps:
        """The whole chain, as far as the task's limits allow."""
        return make_candidate(task.candidate, place, task.limits, from_scratch=task.from_scratch)
