"""The Tune trainable that makes a candidate."""

from trainables.stages.candidate.chain import Steps, make_candidate
from trainables.stages.workspace import Workspace
from trainables.trials.base import ChainTrial
from trainables.trials.task import TrialTask


class CandidateTrial(ChainTrial):
    """data -> teacher -> student -> pruned and recovered -> exported -> measured, or its control from scratch."""

    def begin(self, task: TrialTask, place: Workspace) -> Steps:
        """Start the whole chain; it stops where the candidate exceeds the task's limits."""
        return make_candidate(task.candidate, place, task.limits, from_scratch=task.from_scratch)
