"""The Tune trainable that measures one finished network in one runtime."""

import platform
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Never

from trainables.config.candidate import CandidateConfig
from trainables.records.trial import read_trial
from trainables.stages.export.scheme import has_vnni
from trainables.stages.measuring.clean_room import BrokenRoomError
from trainables.stages.measuring.runtime_cell import CellRecord, measured_cell
from trainables.stages.runtimes.base import AbsentError
from trainables.stages.runtimes.cell import Cell
from trainables.stages.workspace import Workspace
from trainables.trials.base import OutboxTrial

X86 = ("x86_64", "amd64")


class RuntimeTrial(OutboxTrial):
    """One cell of the table of runtimes.

    Also needs, in the Tune config, `cell` (the fields of a `Cell`), `model` (its name in the table), `source` (the
    trial's folder) and `seconds`. What cannot run here leaves a record with status `infeasible` and the reason.
    """

    stage = "runtime"

    def begin(self, config: CandidateConfig, place: Workspace) -> Generator[Never, None, CellRecord | str]:
        """Measure; the result is a reason where there is nothing to measure."""
        source = Path(self.config["source"])
        cell = Cell(**self.config["cell"])
        try:
            with tempfile.TemporaryDirectory() as scratch:
                found = yield from measured_cell(
                    cell,
                    read_trial(source),
                    source,
                    config,
                    place,
                    scratch=Path(scratch),
                    seconds=self.config["seconds"],
                )
                return found
        except AbsentError as error:
            return str(error)
        except BrokenRoomError as error:
            raise ValueError(str(error)) from error

    def finish(self, record: Any) -> dict[str, Any]:
        """Put the numbers, or the reason, into the outbox."""
        if isinstance(record, str):
            self._write(status="infeasible", reason=record, params=self._params(), tags=self._kind)
            return {}
        tags = record.latency.tags() | self._kind
        if platform.machine().lower() in X86:
            tags["vnni"] = "yes" if has_vnni() else "no"
        self._write(status="finished", params=self._params(), metrics=record.metrics, tags=tags)
        return dict(record.metrics)

    def refuse(self, status: str, reason: str, measured: Mapping[str, float]) -> None:
        """Leave the reason in the outbox."""
        self._write(status=status, reason=reason, params=self._params(), metrics=measured, tags=self._kind)

    @property
    def _kind(self) -> dict[str, str]:
        """Tells these runs from the sweep's trials, whose front they are not on."""
        return {"kind": "runtime", "model": self.config["model"]}

    def _params(self) -> dict[str, Any]:
        return {**self.config["cell"], "model": self.config["model"], "of_trial": Path(self.config["source"]).name}
