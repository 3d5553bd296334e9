"""Tune scheduler that stops trials which can no longer reach the front, by `sweeps.search.sampling.rungs`."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.schedulers import TrialScheduler

from sweeps.running.tune.retry import RetryAlone
from sweeps.search.config import OBJECTIVES
from sweeps.search.sampling.rungs import Rungs
from trainables.config.compression import PruneConfig
from trainables.config.score import ExchangeRates
from trainables.files import drop_half_line
from trainables.trials.task import task_of

# A report that lacks one of these (a teacher's, a final one) decides nothing.
NEEDED = {
    "stage",
    "step",
    "steps",
    "val_accuracy",
    "num_val",
    "latency_p50_ms",
    "reference_latency_p50_ms",
    "size_bytes",
}

logger = logging.getLogger(__name__)


class FrontStopper(RetryAlone):
    """Stop a trial at a rung if another one, no slower and no larger, leads it by more than the noise.

    `pareto` compares accuracy among trials with no more latency and size. `composite` compares scores in points
    (`trainables.config.score.composite_score`), in which only accuracy still changes: it stops more trials, and keeps
    little of the front beyond the region of the best score. A trial that loses by `pareto` also has the lower score,
    so `pareto` is safe for both objectives.

    Before pruning, the accuracy is the dense student's and does not predict the loss by pruning. On digits, a ratio of
    0.65 had 0.91 as a student and 0.64 after recovery; a ratio of 0.1 had 0.91 and 0.95. More pruning never helps
    accuracy, so in the student stage the ratio counts as one more objective, among trials pruned by the same method.
    The first epoch after pruning is a rung of its own: there pruned networks can be compared for the first time.
    """

    def __init__(
        self,
        objective: str,
        rates: ExchangeRates,
        path: Path | None,
        *,
        eta: int = 3,
        grace: float = 0.25,
        alone: Mapping[str, float] | None = None,
    ) -> None:
        """Continue with the rungs saved in `path`, if there are any.

        Args:
            objective: `composite` or `pareto`.
            rates: prices of latency and size, used by `composite`.
            path: OUT/sweeps/NAME/rungs.jsonl, one line per entry; None saves nothing.
            eta: see `Rungs`.
            grace: see `Rungs`.
            alone: see `RetryAlone`.

        Raises:
            ValueError: if `objective` is unknown, or `path` does not hold rungs.
        """
        super().__init__(alone=alone)
        if objective not in OBJECTIVES:
            raise ValueError(f"`objective` must be one of {', '.join(OBJECTIVES)}, but got {objective=}.")
        prices = {"log2_latency": rates.latency_points, "log2_size": rates.size_points}
        self._rungs = Rungs(prices=prices if objective == "composite" else {}, eta=eta, grace=grace)
        self._path = path
        if path is not None and path.exists():
            drop_half_line(path)
            try:
                self._rungs.restore(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} holds no rungs ({error}); delete it to start with none.") from error

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """STOP or CONTINUE after an epoch."""
        if any(result.get(name) is None for name in NEEDED) or result.get("final"):
            return str(TrialScheduler.CONTINUE)
        task = task_of(trial)
        key = task.key  # Tune's own id changes after a restart
        if self._rungs.has_stopped(key):  # by a driver that died before Tune stopped it: do not judge it again
            return str(TrialScheduler.STOP)
        step, budget = int(result["step"]), int(result["steps"])
        # not a trial's very first epoch: a teacher that is its own student is pruned before it trains
        milestone = result["stage"] == "recovery" and result.get("epoch") == 1 < step
        if not self._rungs.is_rung(step, budget, milestone=milestone):
            return str(TrialScheduler.CONTINUE)
        peers, fixed = compared_with(result, task.candidate.prune)
        stop = self._rungs.report(
            key,
            step=step,
            budget=budget,
            accuracy=float(result["val_accuracy"]),
            num_val=int(result["num_val"]),
            fixed=fixed,
            peers=peers,
            milestone=milestone,
        )
        self._keep()
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def debug_string(self) -> str:
        """One line for Tune's own status."""
        return f"FrontStopper: {self._rungs.num_stopped} trials stopped."

    def _keep(self) -> None:
        """Save new entries; on a full disk a resumed sweep lacks some of them, but this one keeps running."""
        new = self._rungs.unsaved()
        if self._path is None or not new:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            drop_half_line(self._path)
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in new)
        except OSError as error:
            logger.warning("%s could not be written (%s); the sweep goes on.", self._path, error)
        else:
            self._rungs.saved()


def compared_with(result: Mapping[str, Any], prune: PruneConfig) -> tuple[str, dict[str, float]]:
    """(Peers, fixed objectives) of an epoch's report, for `Rungs.report`.

    log2_latency = log2(latency_p50_ms / reference_latency_p50_ms), doublings of the teacher's
    log2_size    = log2(size_bytes), doublings of one byte; dividing by the teacher's size would shift all alike
    pruning_ratio, in the student stage only

    Args:
        result: with the keys of `NEEDED`.
        prune: how the trial's student is pruned.
    """
    fixed = {
        "log2_latency": math.log2(result["latency_p50_ms"] / result["reference_latency_p50_ms"]),
        "log2_size": math.log2(result["size_bytes"]),
    }
    stage = str(result["stage"])
    if stage == "student":
        how = (prune.pruning_method, prune.pruning_of, prune.pruning_scope)
        return " ".join([stage, *how]), fixed | {"pruning_ratio": prune.pruning_ratio}
    return stage, fixed
