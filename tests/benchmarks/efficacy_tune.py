"""Arm E of efficacy.py: what a competent user of Ray Tune and Optuna writes around prune-and-distil.

Optuna's multi-objective TPE proposes how much to prune, where the channels are compared, the rate (constant, as is
usual where nobody has tuned a schedule), temperature, alpha and epochs; a trial cuts the teacher, distils, and writes
FP32 and INT8. Its objectives are validation accuracy and latency of the INT8 file.
"""

import copy
import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import efficacy_files as files
import ray
import torch
import torch_pruning as tp
from efficacy_bench import Bench, Job
from efficacy_cpu import Meter
from efficacy_training import BATCH, Recipe, fit, of_steps, pruned, soft_logits, views
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

SPACE = {
    "pruning_ratio": tune.uniform(0.1, 0.75),
    "global_pruning": tune.choice([False, True]),
    "rate": tune.loguniform(2e-4, 4e-3),
    "temperature": tune.choice([1.0, 2.0, 4.0, 8.0]),
    "alpha": tune.uniform(0.3, 1.0),
    "epochs": tune.choice([2, 4, 8]),
}
USUAL: list[dict[str, Any]] = [
    {"pruning_ratio": ratio, "global_pruning": False, "rate": 1e-3, "temperature": 4.0, "alpha": 0.7, "epochs": 4}
    for ratio in (0.5, 0.3, 0.6)
]
"""What everybody tries first."""
LAST_S = 10.0
"""CPU-seconds kept back for the end."""


@functools.cache
def meter() -> Meter:
    """Of this process: Tune pickles what it is given, and a meter is nothing to pickle."""
    return Meter()


class Spent(tune.Stopper):
    """Ends the search when the CPU-seconds are spent."""

    def __init__(self, budget_s: float) -> None:
        self._budget_s = budget_s

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return meter().seconds() > self._budget_s - LAST_S


def candidate(config: dict[str, Any], job: Job, soft_file: str) -> None:
    """One trial: prune, distil, write, evaluate, time."""
    bench = Bench(job)
    soft, model = torch.load(soft_file), copy.deepcopy(bench.teacher)
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    how: dict[str, Any] = {"global_pruning": config["global_pruning"], "round_to": 4, "max_pruning_ratio": 0.9}
    pruned(model, config["pruning_ratio"], bench.side, importance, **how)
    recipe = Recipe(
        rate=config["rate"], schedule="constant", alpha=config["alpha"], temperature=config["temperature"], dropout=0.1
    )
    batches = views(bench.train, bench.scale, job.seed)
    steps = config["epochs"] * max(1, len(bench.train.labels) // BATCH)
    fit(model, batches, recipe, of_steps(steps), soft)
    stem = job.out / "trials" / tune.get_context().get_trial_id()
    points = bench.ship(model, stem)
    latency = files.ratio(Path(points[-1]["file"]), bench.file)
    tune.report({"val": points[-1]["val"], "latency": latency, "points": json.dumps(points)})


def search(job: Job) -> list[dict[str, Any]]:
    """Points of all trials that ended within the budget, and of the teacher's own files."""
    bench = Bench(job)
    points = bench.ship(bench.teacher, job.out / "teacher")
    soft_file = job.out / "soft.pt"
    torch.save(soft_logits(bench.teacher, bench.scale, bench.train), soft_file)
    paths = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    environment = {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}}
    ray.init(address="local", num_cpus=job.threads, include_dashboard=False, runtime_env=environment)
    proposer = OptunaSearch(metric=["val", "latency"], mode=["max", "min"], points_to_evaluate=USUAL, seed=job.seed)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(candidate, job=job, soft_file=str(soft_file)), {"cpu": 1}),
        param_space=SPACE,
        tune_config=tune.TuneConfig(
            search_alg=ConcurrencyLimiter(proposer, max_concurrent=job.threads), num_samples=10_000, reuse_actors=True
        ),
        run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(dir=job.out), stop=Spent(job.budget_s), verbose=0),
    )
    results = tuner.fit()
    ray.shutdown()
    for result in results:
        points += json.loads(result.metrics.get("points", "[]")) if result.metrics else []
    return points
