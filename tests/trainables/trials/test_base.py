"""What a trial makes of what its stages raise, without Ray around it."""

import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from trainables.locks import NODE, DeviceLock
from trainables.trials.base import StageTrial
from trainables.trials.task import TASK


class Place:
    worker = property(lambda self: self)

    def workspace(self) -> "Place":
        return self

    def enter(self) -> None:
        pass

    def node_lock(self) -> DeviceLock:
        return DeviceLock(Path(tempfile.gettempdir()) / "leases", NODE)


def trial_of(code: str, module: str) -> StageTrial[Any]:
    """A trial whose stage runs `code`, which lies in a module of this name."""

    class Exits(StageTrial[Any]):
        def begin(self, task: Any, place: Any) -> Generator[Any, None, Any]:
            exec(code, {"__name__": module})
            yield

    trial = Exits.__new__(Exits)
    trial.config = {TASK: Place()}
    return trial


def test_a_network_that_ends_the_process_ends_the_trial_with_a_reason() -> None:
    result = trial_of("import sys; sys.exit(0)", "nets").step()
    assert result["invalid"].startswith("the network's code ends the process (SystemExit: 0, in line ")
    assert (result["final"], result["done"]) == (False, True)


def test_an_exit_that_ray_asks_for_is_obeyed() -> None:
    with pytest.raises(SystemExit, match="1"):
        trial_of("raise SystemExit(1)", "ray._private.worker").step()
