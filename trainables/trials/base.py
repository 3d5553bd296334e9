"""Ray Tune trainables over the stages: one step is one epoch, wherever it is trained.

Nothing is checkpointed through Tune. The store holds every finished stage and the last epoch of the running one, so
a trial that is started again, here or on another node, goes on where it was.
"""

import dataclasses
import errno
import gc
import os
import shutil
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from ray import tune

from trainables.config.candidate import CandidateConfig
from trainables.config.limits import SHAPE_LATENCY, InfeasibleError, Limits
from trainables.files import write_text
from trainables.layout import LEASES, ONNX_FILE, RECIPE, RECORD, TORCHSCRIPT_FILE
from trainables.records.encoding import to_json
from trainables.records.stages import CandidateRecord, EpochRecord, ShapeRecord
from trainables.records.trial import TrialRecord
from trainables.stages.data.prepared import public_name
from trainables.stages.models.placement import give_back
from trainables.stages.workspace import Workspace
from trainables.store.results import store_below
from trainables.tracking.transport import send

FULL = (errno.ENOSPC, errno.EDQUOT)

SHAPE_METRICS = ("latency_p50_ms", "reference_latency_p50_ms", "size_bytes", "num_params", "macs")
"""What is known of a candidate before it is trained."""


class StageTrial(tune.Trainable):
    """Runs a generator of epochs; subclasses say which.

    The Tune config holds `candidate` (the flat configuration), `out`, `data_dir` (paths as text), `threads`, `device`
    and `storage` (what all nodes share, or None). Reports `stage`, `epoch`, `epochs` and `val_accuracy` after every
    epoch, and the result's own numbers with `final=True` at the end. A configuration that cannot work ends the trial
    with `invalid` set to the reason instead of raising: Tune would only run it again. So does a full disk, with `full`.
    """

    _steps: Generator[ShapeRecord | EpochRecord, None, Any] | None = None
    _shape: ShapeRecord | None = None
    _started: float = 0.0

    def begin(self, config: CandidateConfig, place: Workspace) -> Generator[ShapeRecord | EpochRecord, None, Any]:
        """The work: yields the shape and epochs, returns a record."""
        raise NotImplementedError

    def finish(self, record: Any) -> dict[str, Any]:
        """The result's numbers for Tune."""
        raise NotImplementedError

    def refuse(self, status: str, reason: str, measured: Mapping[str, float]) -> None:
        """Called when the configuration cannot give a result: `failed`, or `infeasible` with what was measured."""

    def step(self) -> dict[str, Any]:
        """Train one epoch, or finish."""
        try:
            if self._steps is None:
                self._started = time.time()
                place = workspace(self.config)
                place.enter()
                self._steps = self.begin(CandidateConfig.from_flat(self.config["candidate"]).on(place.device), place)
            step = next(self._steps)
        except StopIteration as end:
            return {**self.finish(end.value), "final": True, "done": True}
        except InfeasibleError as error:
            self.refuse("infeasible", str(error), error.measured)
            return {"excess": error.excess, "final": False, "done": True}
        except ValueError as error:
            self.refuse("failed", str(error), {})
            return {"invalid": str(error), "final": False, "done": True}
        except OSError as error:
            if error.errno not in FULL:
                raise
            return {"full": str(error.filename or self.config["out"]), "final": False, "done": True}
        if isinstance(step, ShapeRecord):
            self._shape = step
            return {"stage": "shape", "final": False}
        return self._report(step)

    def _report(self, epoch: EpochRecord) -> dict[str, Any]:
        """An epoch, with what is known of the untrained shape, for schedulers that compare whole candidates."""
        report = {**dataclasses.asdict(epoch), "final": False}
        report["num_val"] = self.config.get("num_val")
        if self._shape is not None and epoch.stage in ("student", "recovery"):
            planned = self.config["candidate"]
            before = planned["student_epochs"] if epoch.stage == "recovery" else 0
            report["step"] = before + epoch.epoch
            report["steps"] = planned["student_epochs"] + planned["recovery_epochs"]
            for name in SHAPE_METRICS:
                report[name] = getattr(self._shape, name)
        return report

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Give this process to the next trial with nothing left of the last one."""
        self.cleanup()
        self.config = new_config
        return True

    def cleanup(self) -> None:
        """Let go of locks and memory; the unfinished stage stays in the store."""
        if self._steps is not None:
            self._steps.close()
        self._steps = None
        self._shape = None
        gc.collect()
        give_back()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the store is the checkpoint."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the store is the checkpoint."""


class OutboxTrial(StageTrial):
    """A trial whose result goes to MLflow: it leaves record and files in `trial_dir`, and talks to nobody.

    Also needs `key` (`SWEEP/00012`), `trial_number` and `trial_dir` in the Tune config; `tags` there, if any, go into
    the record.
    """

    stage: ClassVar[str]

    def finish(self, record: CandidateRecord) -> dict[str, Any]:
        """Put artifacts and record into the outbox."""
        folder = Path(self.config["trial_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        files = [record.export.folder / ONNX_FILE]
        if record.export.torchscript_bytes is not None:
            files.append(record.export.folder / TORCHSCRIPT_FILE)
        for file in files:
            link(file, folder / file.name)
        write_text(folder / RECIPE, to_json(dict(record.params)))
        metrics = record.metrics() | {"trial_time_s": time.time() - self._started}
        if self._shape is not None and self._shape_is_final():
            metrics[SHAPE_LATENCY] = self._shape.latency_p50_ms
        teacher = {"teacher_val_accuracy": self.config["teacher_val_accuracy"]} if self.stage == "candidate" else {}
        excess = self._limits().excess(metrics | teacher)
        over = [name for name, by in excess.items() if by > 0]
        self._write(
            status="infeasible" if over else "finished",
            reason=f"over {', '.join(over)}" if over else "",
            params=record.params,
            metrics=metrics,
            tags=record.tags(),
            curve=record.curve,
            files=(*(file.name for file in files), RECIPE),
            keys=record.keys,
        )
        return metrics | {"excess": excess}

    def _shape_is_final(self) -> bool:
        """Whether the shape that was measured is that of the file: recovery between cuts changes which channels go."""
        planned = CandidateConfig.from_flat(self.config["candidate"]).prune
        return not planned.shape_needs_weights or planned.pruning_steps == 1

    def _limits(self) -> Limits:
        return Limits(**self.config.get("limits", {}))

    def refuse(self, status: str, reason: str, measured: Mapping[str, float]) -> None:
        """Leave the reason in the outbox."""
        params = self.config["candidate"] | {"dataset": public_name(self.config["candidate"]["dataset"])}
        self._write(status=status, reason=reason, params=params, metrics=measured)

    def _write(
        self,
        *,
        status: str,
        params: Mapping[str, Any],
        reason: str = "",
        metrics: Mapping[str, float] = MappingProxyType({}),
        tags: Mapping[str, str] = MappingProxyType({}),
        curve: tuple[EpochRecord, ...] = (),
        files: tuple[str, ...] = (),
        keys: tuple[str, ...] = (),
    ) -> None:
        folder = Path(self.config["trial_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        record = TrialRecord(
            key=self.config["key"],
            trial_number=self.config["trial_number"],
            stage=self.stage,
            status=status,
            reason=reason,
            params=params,
            metrics=dict(metrics),
            tags={**tags, **self.config.get("tags", {})},
            curve=curve,
            files=files,
            started=self._started,
            ended=time.time(),
            keys=keys,
        )
        write_text(folder / RECORD, to_json(record))
        if self.config.get("storage"):
            send(folder, self.config["key"], self.config["storage"])


def workspace(config: Mapping[str, Any]) -> Workspace:
    """The workspace that a Tune config names."""
    out = Path(config["out"])
    return Workspace(
        store=store_below(out, config.get("storage")),
        data_dir=Path(config["data_dir"]),
        device=config["device"],
        threads=config["threads"],
        lock_dir=out / LEASES,
        memory_share=config.get("memory_share", 1.0),
    )


def link(source: Path, target: Path) -> None:
    """The same bytes under another name: a hard link, or a copy where the file system has none."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
