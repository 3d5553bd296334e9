"""Ray Tune trainables that run the stages: one Tune step is one epoch.

Nothing is checkpointed through Tune. The store holds every finished stage and the last epoch of the running one, so a
trial that is restarted, on this node or another, resumes where it stopped.
"""

import dataclasses
import errno
import gc
import os
import shutil
import time
import traceback
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from ray import tune

from trainables.config.limits import SHAPE_LATENCY, InfeasibleError
from trainables.files import write_text
from trainables.layout import ONNX_FILE, RECIPE, RECORD, TORCHSCRIPT_FILE
from trainables.records.encoding import to_json
from trainables.records.stages import CandidateRecord, EpochRecord, ShapeRecord
from trainables.stages.models.inspection import describe_error
from trainables.stages.models.placement import release_memory
from trainables.stages.workspace import Workspace
from trainables.tracking.transport import send
from trainables.trials.task import TASK, Task, TrialTask

AnyTask = TypeVar("AnyTask", bound=Task)
FULL = (errno.ENOSPC, errno.EDQUOT)  # no space left, or the user's quota is used up
# The metrics of a candidate that are known before it is trained.
SHAPE_METRICS = (
    "latency_p50_ms",
    "reference_latency_p50_ms",
    "latency_alone_s",
    "size_bytes",
    "num_params",
    "macs",
)


class StageTrial(tune.Trainable, Generic[AnyTask]):
    """A Tune trainable that runs the generator of epochs which a subclass provides in `begin`.

    It reports `stage`, `epoch`, `epochs` and `val_accuracy` after every epoch, and the result's own numbers with
    `final=True` at the end. An invalid configuration ends the trial with `invalid` set to the reason. It does not
    raise, because Tune would run it again. A full disk also ends the trial, with `full` set to the path.
    """

    _steps: Generator[ShapeRecord | EpochRecord, None, Any] | None = None
    _shape: ShapeRecord | None = None
    _started: float = 0.0

    @property
    def task(self) -> AnyTask:
        """The task of this trial."""
        task: AnyTask = self.config[TASK]
        return task

    def begin(self, task: AnyTask, place: Workspace) -> Generator[ShapeRecord | EpochRecord, None, Any]:
        """Start the work: a generator that yields the shape and the epochs and returns a record."""
        raise NotImplementedError

    def finish(self, record: Any) -> dict[str, Any]:
        """Hand over the result; return its numbers for Tune."""
        raise NotImplementedError

    def refuse(self, status: str, reason: str, measured: Mapping[str, float]) -> None:
        """Handle a configuration without a result: `failed`, or `infeasible` with the metrics measured so far."""

    def step(self) -> dict[str, Any]:
        """Train one epoch, or finish the trial, while nobody measures on this node."""
        with self.task.worker.node_lock().shared():
            return self._advance()

    def _advance(self) -> dict[str, Any]:
        try:
            # not in Tune's `setup`: an error there would not reach the handlers below
            if self._steps is None:
                self._started = time.time()
                place = self.task.worker.workspace()
                place.enter()
                self._steps = self.begin(self.task, place)
            step = next(self._steps)
        except StopIteration as end:
            return {**self.finish(end.value), "final": True, "done": True}
        except InfeasibleError as error:
            self.refuse("infeasible", str(error), error.measured)
            return {"excess": error.excess, "final": False, "done": True}
        except ValueError as error:  # after InfeasibleError, which is one too
            self.refuse("failed", str(error), {})
            return {"invalid": str(error), "final": False, "done": True}
        except SystemExit as error:  # Ray would take it for an order to end this process, and Tune would start another
            if _is_rays(error):
                raise
            reason = f"the network's code ends the process ({describe_error(error)})"
            self.refuse("failed", reason, {})
            return {"invalid": reason, "final": False, "done": True}
        except OSError as error:
            if error.errno not in FULL:
                raise
            return {"full": str(error.filename or self.task.worker.out), "final": False, "done": True}
        if isinstance(step, ShapeRecord):
            self._shape = step
            return {"stage": "shape", "final": False}
        return self.report(step)

    def report(self, epoch: EpochRecord) -> dict[str, Any]:
        """The numbers of an epoch for Tune."""
        return {**dataclasses.asdict(epoch), "final": False}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Prepare this process for the next trial, with no state left from the last one."""
        self.cleanup()
        self.config = new_config
        return True

    def cleanup(self) -> None:
        """Release locks and memory; the unfinished stage stays in the store."""
        with self.task.worker.node_lock().shared():
            if self._steps is not None:
                self._steps.close()  # runs the `finally` blocks of the stages, which release the locks
            self._steps = None
            self._shape = None
            gc.collect()  # networks in reference cycles hold GPU memory until they are collected
            release_memory()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the store is the checkpoint."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the store is the checkpoint."""


class OutboxTrial(StageTrial[AnyTask]):
    """A trial that writes record and files into its task's folder; the driver delivers them to MLflow."""

    def refuse(self, status: str, reason: str, measured: Mapping[str, float]) -> None:
        """Write a record with the reason into the outbox."""
        self.write_result(status=status, reason=reason, metrics=measured)

    def write_result(self, **result: Any) -> None:
        """Write the trial's record, `Task.record(**result)`, and send it if the nodes share a storage."""
        task = self.task
        task.folder.mkdir(parents=True, exist_ok=True)
        record = task.record(started=self._started, ended=time.time(), **result)
        write_text(task.folder / RECORD, to_json(record))
        if task.worker.storage:
            send(task.folder, task.address, task.worker.storage)


class ChainTrial(OutboxTrial[TrialTask]):
    """A trial whose chain of stages ends in files to ship."""

    def report(self, epoch: EpochRecord) -> dict[str, Any]:
        """The numbers of an epoch and of the untrained shape, for schedulers that compare whole candidates."""
        report = super().report(epoch) | {"num_val": self.task.num_val}
        if self._shape is not None and epoch.stage in ("student", "recovery"):
            # one count over training and recovery: a scheduler sees how far the whole candidate has got
            planned = self.task.candidate
            before = planned.student.student_epochs if epoch.stage == "recovery" else 0
            report["step"] = before + epoch.epoch
            report["steps"] = planned.student.student_epochs + planned.prune.recovery_epochs
            views = planned.taught_views()
            report["taught"], report["taught_views"] = report["step"] - 1 in views, len(views)
            for name in SHAPE_METRICS:
                report[name] = getattr(self._shape, name)
        return report

    def finish(self, record: CandidateRecord) -> dict[str, Any]:
        """Write artifacts and record into the outbox."""
        task, folder = self.task, self.task.folder
        folder.mkdir(parents=True, exist_ok=True)
        files = [record.export.folder / ONNX_FILE]
        if record.export.torchscript_bytes is not None:
            files.append(record.export.folder / TORCHSCRIPT_FILE)
        for file in files:
            link(file, folder / file.name)
        write_text(folder / RECIPE, to_json(task.row()))
        metrics = record.metrics() | {"trial_time_s": time.time() - self._started}
        if self._shape is not None and self._shape_is_final() and not record.export.kept_in_float:
            metrics[SHAPE_LATENCY] = self._shape.latency_p50_ms
        teacher = {"teacher_val_accuracy": task.teacher_val_accuracy} if task.teacher_val_accuracy is not None else {}
        excess = task.limits.excess(metrics | teacher)
        over = [name for name, by in excess.items() if by > 0]
        self.write_result(
            status="infeasible" if over else "finished",
            reason=f"over {', '.join(over)}" if over else "",
            metrics=metrics,
            tags=record.tags(),
            curve=record.curve,
            files=(*(file.name for file in files), RECIPE),
            keys=record.keys,
        )
        return metrics | {"excess": excess}

    def _shape_is_final(self) -> bool:
        """Whether the file has the shape that was measured before training."""
        # with several cuts, recovery between them changes which channels are removed
        prune = self.task.candidate.prune
        return not prune.shape_needs_weights or prune.pruning_steps == 1


def _is_rays(error: SystemExit) -> bool:
    """Whether Ray ends this process, as on SIGTERM."""
    *_, innermost = (frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__))
    return str(innermost).startswith("ray.")


def link(source: Path, target: Path) -> None:
    """Give a file a second name: a hard link, or a copy if the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
