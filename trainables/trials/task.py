"""Tasks that the driver sends to workers: the work, the resources, and where to put the result."""

import dataclasses
import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainables.config.candidate import Candidate, DataConfig
from trainables.config.escaping import hide_password
from trainables.config.limits import Limits
from trainables.layout import LEASES, REPLACED, has_record
from trainables.locks import DeviceLock, node_lock
from trainables.records.encoding import to_json
from trainables.records.stages import EpochRecord
from trainables.records.trial import TrialRecord, read_trial
from trainables.stages.runtimes.cell import Cell
from trainables.stages.workspace import Workspace
from trainables.store.results import store_below

log = logging.getLogger(__name__)

# The only entry of a Tune config: the trial's `Task`.
TASK = "task"
OF_DEVICE = "train_precision"  # chosen by the device, so that a sweep may go on on another one


@dataclass(frozen=True, kw_only=True)
class Worker:
    """The resources of a worker process; the paths are the same on every node."""

    out: Path
    """OUT of the sweep, absolute; the node's own locks and cache are below it."""
    data: DataConfig
    """The data set, with its local path if it is a folder of images."""
    data_dir: Path
    """Folder of downloads and decoded arrays, absolute."""
    storage: str | None
    """The folder or URL that all nodes share; None for a single node."""
    device: str
    """`cpu` or `gpu`, whatever accelerator that is on its node."""
    threads: int
    memory_share: float = 1.0
    """Fraction of a GPU's memory that it may use, in (0, 1]."""
    graphs: bool = False
    """Whether training replays the network's kernels as graphs."""

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
            graphs=self.graphs,
        )

    def node_lock(self) -> DeviceLock:
        """The lock of this node, which everything that computes for a sweep shares."""
        return node_lock(self.out)


@dataclass(frozen=True, kw_only=True)
class Task:
    """The work of one trial, and where its result goes."""

    worker: Worker
    key: str
    """`SWEEP/00012`: delivery uses it to create each MLflow run only once."""
    folder: Path
    """Its outbox, absolute: receives the record and the files to ship."""
    stage: str
    """`candidate`, `teacher` or `runtime`."""
    sweep_id: str = ""
    """Id of the sweep: its name may be that of another one in the same storage. Empty outside a sweep."""
    trial_number: int | None = None
    """Number in the Optuna study; None if the search did not propose it."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags for the record; they override the result's own."""
    alone: bool = False
    """Whether it has a whole GPU, because it ran out of memory when it shared one."""

    def row(self) -> dict[str, Any]:
        """The parameters for its record, whether it finishes or not."""
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
        """Build the trial's record; fields as in `TrialRecord`."""
        return TrialRecord(
            key=self.key,
            trial_number=self.trial_number,
            stage=self.stage,
            status=status,
            reason=hide_password(reason),  # it is uploaded
            params=self.row() if params is None else params,
            metrics=dict(metrics),
            tags={**tags, **self.tags},
            curve=curve,
            files=files,
            started=started,
            ended=ended,
            keys=keys,
            sweep_id=self.sweep_id,
        )

    @property
    def address(self) -> str:
        """Where its result lies in a storage that sweeps share: `SWEEP/ID/00012`."""
        sweep, _, run = self.key.partition("/")
        return "/".join(part for part in (sweep, self.sweep_id, run) if part)

    def fits(self, record: TrialRecord) -> bool:
        """Whether a record is the result of this task: of the same sweep, number and configuration."""
        mine = json.loads(to_json(self.row()))  # as it is read back: tuples are lists
        same = all(record.params.get(name, value) == value for name, value in mine.items() if name != OF_DEVICE)
        return same and record.key == self.key and record.sweep_id in ("", self.sweep_id)

    def clear_folder(self) -> None:
        """Move a result that is not this task's out of its folder; a journal cut short may leave one there."""
        if not has_record(self.folder):
            return
        try:
            if self.fits(read_trial(self.folder)):
                return
        except ValueError as error:
            log.warning("%s", error)
        aside = self.folder.parent / REPLACED / f"{self.folder.name}-{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(exist_ok=True)
        self.folder.rename(aside)

    def with_whole_gpu(self) -> "Task":
        """A copy for the next attempt, after it ran out of memory on a shared GPU."""
        return dataclasses.replace(self, worker=dataclasses.replace(self.worker, memory_share=1.0), alone=True)

    def tune_config(self) -> dict[str, Any]:
        """The Tune config that contains this task."""
        return {TASK: self}


@dataclass(frozen=True, kw_only=True)
class TrialTask(Task):
    """A candidate, or the teacher, to make."""

    candidate: Candidate
    stage: str = "candidate"
    limits: Limits = field(default_factory=Limits)
    teacher_val_accuracy: float | None = None
    """The accuracy that `max_drop` refers to, 0 to 1; None for the teacher itself."""
    num_val: int | None = None
    """Number of images that `val_accuracy` is computed on."""
    from_scratch: bool = False
    """Train the pruned shape from random weights: the control arm of pruning."""

    def row(self) -> dict[str, Any]:
        """The candidate's flat row, or the teacher's row for the teacher."""
        if self.stage == "teacher":
            return self.candidate.teacher_row()
        return self.candidate.flat() | ({"from_scratch": True} if self.from_scratch else {})


@dataclass(frozen=True, kw_only=True)
class RuntimeTask(Task):
    """A finished network to measure in one runtime."""

    cell: Cell
    model: str
    """The network's name in the table."""
    source: Path
    """Folder of the trial that made the network."""
    seconds: float
    """Upper bound of the timing, seconds."""
    model_digest: str
    """Of its ONNX file, because another network may come to have the same name."""
    models: tuple[str, ...] = ()
    """Functions of the user's own that may be imported to build the network."""
    stage: str = "runtime"

    def row(self) -> dict[str, Any]:
        """The cell, the network's name and digest, and its trial."""
        network = {"model": self.model, "of_trial": self.source.name, "model_digest": self.model_digest}
        return {**vars(self.cell), **network}


def task_of(trial: Any) -> Any:
    """The task of a Tune trial."""
    return trial.config[TASK]
