"""What a trial makes of what its stages raise, and when it computes, without Ray around it."""

import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from trainables.locks import DeviceLock, node_lock
from trainables.trials.base import StageTrial
from trainables.trials.task import TASK


class Place:
    worker = property(lambda self: self)

    def __init__(self, out: Path) -> None:
        self._out = out

    def workspace(self) -> "Place":
        return self

    def enter(self) -> None:
        pass

    def node_lock(self) -> DeviceLock:
        return node_lock(self._out)


def trial_of(code: str, module: str, out: Path, **names: Any) -> StageTrial[Any]:
    """A trial whose stage runs `code`, which lies in a module of this name and knows these names."""

    class Exits(StageTrial[Any]):
        def begin(self, task: Any, place: Any) -> Generator[Any, None, Any]:
            exec(code, {"__name__": module} | names)
            yield

    trial = Exits.__new__(Exits)
    trial.config = {TASK: Place(out)}
    return trial


def test_a_network_that_ends_the_process_ends_the_trial_with_a_reason(tmp_path: Path) -> None:
    result = trial_of("import sys; sys.exit(0)", "nets", tmp_path).step()
    assert result["invalid"].startswith("the network's code ends the process (SystemExit: 0, in line ")
    assert (result["final"], result["done"]) == (False, True)


def test_an_exit_that_ray_asks_for_is_obeyed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="1"):
        trial_of("raise SystemExit(1)", "ray._private.worker", tmp_path).step()


def test_nobody_measures_while_a_trial_computes(tmp_path: Path) -> None:
    entered, seen = threading.Event(), []

    def measure() -> None:
        with node_lock(tmp_path).alone():
            entered.set()

    def look() -> None:
        threading.Thread(target=measure, daemon=True).start()
        seen.append(entered.wait(0.2))

    trial_of("look(); raise ValueError('enough')", "nets", tmp_path, look=look).step()
    assert seen == [False]
    assert entered.wait(5)


@pytest.mark.parametrize("work", ["step", "cleanup"])
def test_a_trial_waits_while_another_one_measures(work: str, tmp_path: Path) -> None:
    trial, over = trial_of("raise ValueError('enough')", "nets", tmp_path), threading.Event()

    def compute() -> None:
        getattr(trial, work)()
        over.set()

    with node_lock(tmp_path).alone():
        threading.Thread(target=compute, daemon=True).start()
        assert not over.wait(0.2)
    assert over.wait(5)
