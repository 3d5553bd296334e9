"""While a trial measures, neither Tune's loop nor a delivery goes on."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.running.tune.delivery import Delivery
from sweeps.running.tune.tuning import tuner
from sweeps.running.tune.upkeep import StandStill
from sweeps.search.presets import quick
from tests.sweeps.running.tune.test_recovery import task
from trainables.locks import node_lock
from trainables.trials.candidate import CandidateTrial


def goes_on(action: Callable[[], object]) -> threading.Event:
    """Set once the action, which runs in a thread, is over."""
    over = threading.Event()

    def act() -> None:
        action()
        over.set()

    threading.Thread(target=act, daemon=True).start()
    return over


def test_tunes_loop_stands_still_while_a_trial_measures(tmp_path: Path) -> None:
    lock = node_lock(tmp_path)
    with lock.alone():
        step = goes_on(lambda: StandStill(lock).on_step_begin(0, []))
        assert not step.wait(0.2)
    assert step.wait(5)


@pytest.mark.parametrize("end", ["on_trial_complete", "on_trial_error"])
def test_nothing_is_delivered_while_a_trial_measures(end: str, tmp_path: Path) -> None:
    delivered: list[Path] = []
    tracker: Any = SimpleNamespace(deliver=lambda folder, scores: delivered.append(folder))
    progress: Any = SimpleNamespace(dropped=lambda label, made: None)
    delivery = Delivery(tracker, lambda metrics: 0.0, progress)
    measuring = task(quick().replace(out=tmp_path), 3, {})
    last = {"step": 1, "steps": 2}
    trial: Any = SimpleNamespace(
        trial_id="t", config=measuring.tune_config(), last_result=last, error_file=None, num_failures=1
    )
    with measuring.worker.node_lock().alone():
        over = goes_on(lambda: getattr(delivery, end)(0, [], trial))
        assert not over.wait(0.2)
        assert not delivered
    assert over.wait(5)
    assert delivered == [measuring.folder]


@pytest.mark.parametrize(("address", "stands"), [(None, True), ("auto", False)])
def test_only_the_driver_of_a_local_ray_stands_still(address: str | None, stands: bool, tmp_path: Path) -> None:
    """On a cluster trials measure on other machines."""
    config = quick().replace(out=tmp_path, address=address)
    made = tuner(CandidateTrial, config, name="trials", callbacks=[], searcher=None)  # type: ignore[arg-type]  # unused
    callbacks = made._local_tuner.get_run_config().callbacks
    assert any(isinstance(callback, StandStill) for callback in callbacks) == stands
