"""The Tune trainable that measures one finished network in one runtime."""

import platform
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, Never

from trainables.records.trial import read_trial
from trainables.stages.measuring.clean_room import BrokenRoomError
from trainables.stages.measuring.runtime_cell import CellRecord, measure_cell
from trainables.stages.models.devices.processor import has_vnni
from trainables.stages.runtimes.base import AbsentError
from trainables.stages.workspace import Workspace
from trainables.trials.base import OutboxTrial
from trainables.trials.task import RuntimeTask

X86 = ("x86_64", "amd64")  # VNNI, which speeds up INT8, exists only there


class RuntimeTrial(OutboxTrial[RuntimeTask]):
    """One cell of the runtime table; a runtime that cannot run here yields an `infeasible` record with the reason."""

    def begin(self, task: RuntimeTask, place: Workspace) -> Generator[Never, None, CellRecord | str]:
        """Measure the cell; return the reason as text if the runtime is unavailable."""
        yield from ()  # no epochs, but the base class expects a generator
        trial = read_trial(task.source)
        try:
            with tempfile.TemporaryDirectory() as scratch:
                return measure_cell(
                    task.cell,
                    trial,
                    task.source,
                    place,
                    scratch=Path(scratch),
                    seconds=task.seconds,
                    models=task.models,
                )
        except AbsentError as error:
            return str(error)
        except BrokenRoomError as error:
            raise ValueError(str(error)) from error

    def finish(self, record: Any) -> dict[str, Any]:
        """Write the numbers, or the reason, into the outbox."""
        if isinstance(record, str):
            self.write_result(status="infeasible", reason=record)
            return {}
        tags = record.latency.tags()
        if platform.machine().lower() in X86:
            tags["vnni"] = "yes" if has_vnni() else "no"
        self.write_result(status="finished", metrics=record.metrics, tags=tags)
        return dict(record.metrics)
