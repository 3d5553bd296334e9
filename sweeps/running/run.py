"""A running sweep: what teacher, trials and champions all need."""

from dataclasses import dataclass
from functools import partial

from rich.console import Console

from sweeps.planning.budget import Deadline
from sweeps.search.config import SweepConfig
from sweeps.search.objectives import composite_score
from trainables.records.stages import DatasetRecord
from trainables.records.trial import TrialRecord
from trainables.stages.data.prepared import absolute
from trainables.tracking.deliveries import Score
from trainables.tracking.tracker import Tracker
from trainables.trials.task import Worker


@dataclass(frozen=True, kw_only=True)
class Run:
    """One command's run of a sweep."""

    config: SweepConfig
    dataset: DatasetRecord
    teacher: TrialRecord
    sweep_id: str
    tracker: Tracker
    console: Console
    deadline: Deadline | None = None
    """When it has to stop; None sets no limit."""
    retry_failed: bool = False
    """Whether trials that failed are run again, and reasons that the store remembers are forgotten."""

    @property
    def score(self) -> Score:
        """A finished candidate's metrics -> points, higher is better."""
        # Not a lambda: Tune pickles the objects that hold it.
        return partial(composite_score, teacher_size_bytes=self.teacher.metrics["size_bytes"], rates=self.config.rates)


def worker_of(config: SweepConfig) -> Worker:
    """The settings of a trial's process: folders, data, device, threads and memory."""
    return Worker(
        out=config.places.out.resolve(),
        data=absolute(config.search.base.data),  # workers in a cluster have another working directory
        data_dir=config.places.data_dir.resolve(),
        storage=config.places.storage,
        device=config.devices.device,
        threads=config.devices.threads,
        memory_share=min(1.0, config.devices.share),
        graphs=config.devices.graphs,
    )
