"""One trial as the driver hands it to a worker: what is made, with what, and under which name it is handed back."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainables.config.candidate import Candidate, DataConfig
from trainables.config.limits import Limits
from trainables.layout import LEASES
from trainables.records.stages import EpochRecord
from trainables.records.trial import TrialRecord
from trainables.stages.runtimes.cell import Cell
from trainables.stages.workspace import Workspace
from trainables.store.results import store_below

TASK = "task"
"""The only entry of a Tune config: its `Task`."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What a worker process has to work with; every node has these paths."""

    out: Path
    """Of the sweep, absolute; a node's own locks and cache lie below it."""
    data: DataConfig
    """Where the images are found, with a local path where they lie in a folder."""
    data_dir: Path
    """Downloads and decoded arrays, absolute."""
    storage: str | None
    """What all nodes share: a folder or a URL; None where there is one node."""
    device: str
    """`cpu` or `cuda`."""
    threads: int
    memory_share: float = 1.0
    """Of a GPU's memory, in (0, 1]."""

    def workspace(self) -> Workspace:
        """The workspace on this node."""
        return Workspace(
            store=store_below(self.out, self.storage),
            data=self.data,
            data_dir=self.data_dir,
            device=self.device,
            threads=self.threads,
            lock_dir=self.out / LEASES,
            memory_share=self.memory_share,
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker is to do, and how its result is handed back."""

    worker: Worker
    key: str
    """`SWEEP/00012`: the name under which its record is delivered once."""
    folder: Path
    """Its outbox, absolute: record and files to ship."""
    stage: str
    """`candidate`, `teacher` or `runtime`."""
    trial_number: int | None = None
    """Of the Optuna study; None for what the search did not propose."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """For the record, besides the result's own."""
    alone: bool = False
    """Whether it has a GPU of its own because it ran out of memory beside others."""

    def row(self) -> dict[str, Any]:
        """The parameters of its record, finished or not."""
        raise NotImplementedError

    def record(
        self,
        *,
        status: str,
        started: float,
        ended: float,
        reason: str = "",
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] = MappingProxyType({}),
        tags: Mapping[str, str] = MappingProxyType({}),
        curve: tuple[EpochRecord, ...] = (),
        files: tuple[str, ...] = (),
        keys: tuple[str, ...] = (),
    ) -> TrialRecord:
        """What the trial leaves; fields as in `TrialRecord`."""
        return TrialRecord(
            key=self.key,
            trial_number=self.trial_number,
            stage=self.stage,
            status=status,
            reason=reason,
            params=self.row() if params is None else params,
            metrics=dict(metrics),
            tags={**tags, **self.tags},
            curve=curve,
            files=files,
            started=started,
            ended=ended,
            keys=keys,
        )

    def with_whole_gpu(self) -> "Task":
        """The same for its next attempt, after it ran out of memory beside others."""
        return dataclasses.replace(self, worker=dataclasses.replace(self.worker, memory_share=1.0), alone=True)

    def tune_config(self) -> dict[str, Any]:
        """The Tune config that carries it."""
        return {TASK: self}


@dataclass(frozen=True, kw_only=True)
class TrialTask(Task):
    """A candidate, or the teacher, to make."""

    candidate: Candidate
    stage: str = "candidate"
    limits: Limits = field(default_factory=Limits)
    teacher_val_accuracy: float | None = None
    """What `max_drop` is counted from, 0 to 1; None for the teacher itself."""
    num_val: int | None = None
    """Images behind every `val_accuracy`."""
    from_scratch: bool = False
    """Train the pruned shape from random weights: the control arm of pruning."""

    def row(self) -> dict[str, Any]:
        """The candidate's flat row; of the teacher what decides it."""
        if self.stage == "teacher":
            return self.candidate.teacher_row()
        return self.candidate.flat() | ({"from_scratch": True} if self.from_scratch else {})


@dataclass(frozen=True, kw_only=True)
class RuntimeTask(Task):
    """A finished network to measure in one runtime."""

    cell: Cell
    model: str
    """Its name in the table."""
    source: Path
    """Folder of the trial whose network it is."""
    seconds: float
    """For timing, at most."""
    stage: str = "runtime"

    def row(self) -> dict[str, Any]:
        """The cell, and whose network is in it."""
        return {**vars(self.cell), "model": self.model, "of_trial": self.source.name}


def task_of(trial: Any) -> Any:
    """The task of a Tune trial."""
    return trial.config[TASK]
