"""Run a trial that ran out of GPU memory beside others again, on a GPU of its own, and print that."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from rich.console import Console

from sweeps.cluster.ray_private import give_resources
from trainables.trials.task import task_of

# Texts, not exception types: the driver sees only the traceback that Tune has written to the trial's error file.
OUT_OF_MEMORY = (
    *("OutOfMemoryError", "MemoryError", "out of memory", "STATUS_ALLOC_FAILED"),
    "Failed to allocate memory",  # ONNX Runtime, in the process that measures
)

NODE_DIED = "its node died"
# Ray's words -> ours, for failures that leave no exception.
DEATHS = {
    "node has died": NODE_DIED,
    "owner has died": "Ray died",
    "worker process has died": "its process was killed, as for lack of memory, or crashed",
}


class RetryAlone(FIFOScheduler):
    """First come, first served; a trial that ran out of memory gets more resources for its next attempt."""

    def __init__(self, *, alone: Mapping[str, float] | None = None) -> None:
        """`alone` is the resources of such a trial; None leaves them as they were."""
        super().__init__()
        self._alone = alone

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Tune: a trial has failed, for good or until its next attempt. Give it a whole GPU if memory ran out."""
        if self._alone and ran_out_of_memory(trial) and not task_of(trial).alone:
            # The task is marked, too, so that a second failure changes nothing and `SayRetry` knows the reason.
            give_resources(trial, self._alone)
            trial.config |= task_of(trial).with_whole_gpu().tune_config()
        super().on_trial_error(tune_controller, trial)


class SayRetry(tune.Callback):
    """Print one line when a trial is run again, and how; the death of a process is not a failure of its trial."""

    def __init__(self, console: Console) -> None:
        self._console: Console | None = console

    def __getstate__(self) -> dict[str, Any]:
        """No console: Tune pickles callbacks, and a console cannot be pickled."""
        return {"_console": None}

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial will be started again. Say so."""
        if self._console is None:
            return
        task = task_of(trial)
        text = f"was cut off ({reason_in(last_failure(trial))}); it goes on where it was"
        if task.alone and ran_out_of_memory(trial):
            text = "ran out of memory beside others; it runs again with a GPU of its own"
        who = "teacher" if task.trial_number is None else f"trial {task.trial_number}"
        self._console.print(f"{who}  {text}", style="yellow", markup=False, soft_wrap=True)


def ran_out_of_memory(trial: Trial) -> bool:
    """Whether the trial's last attempt failed for lack of memory."""
    last = last_failure(trial)
    return any(name in last for name in OUT_OF_MEMORY)


def last_failure(trial: Trial) -> str:
    """What Tune has written of the trial's last failure; empty if it has written nothing."""
    if not trial.error_file or not Path(trial.error_file).exists():
        return ""
    return Path(trial.error_file).read_text(encoding="utf-8", errors="replace").rpartition("Failure #")[2]


def reason_in(failure: str) -> str:
    """Why a trial's process failed, on one line, from Ray's description of the failure."""
    for words, reason in DEATHS.items():
        if words in failure:
            return reason
    lines = [line.strip() for line in failure.splitlines() if line.strip()]
    return lines[-1] if lines else "its process died"
