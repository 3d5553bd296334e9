"""The arms of efficacy.py, one process each: `python efficacy_arms.py ARM JOB.json` writes OUT/points.json.

A  ours: kd_prune.py with its own defaults, given the teacher, the images and the time.
B  a width multiplier: for every latency the widest net that keeps to it, trained from scratch by distillation.
C  torch-pruning: the recipe of its reproduce/main.py (GroupNormPruner with group_norm's importance in 400 small steps
   until the target is reached; SGD 0.01, a tenth of the rate that it trains with, falling to a tenth at 60 % and at
   80 %; the labels alone), applied to the teacher. Of its two scopes, `global` and `local`, the better one here: local.
D  the teacher's own FP32 and INT8 files.
E  Ray Tune and Optuna around prune-and-distil: efficacy_tune.py.

B, C and E may ship the teacher's INT8 file, too; B and C train nothing for a latency that it keeps to. Every choice
looks at validation images alone.
"""

import copy
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from efficacy_bench import AIM, Bench, Job
from efficacy_cpu import Meter
from efficacy_training import Recipe, fit, last, narrowed, of_cpu, soft_logits, views
from torch import Tensor, nn

REPO = Path(__file__).parents[2]
START_S, TASK_S = 5.0, 6.0
"""CPU-seconds kept back: a process to start, and two files to write and evaluate."""
LEAST_S = 2.0
"""CPU-seconds of training a network, also where the budget is too small for any."""
FROM_SCRATCH = Recipe(optimizer="adamw", rate=2e-3, decay=0.05, alpha=0.7, temperature=4.0, dropout=0.1)
TORCH_PRUNING = Recipe(optimizer="sgd", rate=0.01, decay=5e-4, schedule="steps")
FINER = 1.15
"""Factor between the MACs of two measured stages of pruning."""


def ours(job: Job) -> list[dict[str, Any]]:
    """Arm A. Its own budget is one of wall time: the command is repeated with the CPU-seconds that are left, and
    interrupted when they are spent."""
    meter, limit = Meter(), job.budget_s
    while (left := limit - meter.seconds()) > 0.1 * limit:
        command = [
            sys.executable, str(REPO / "sweeps" / "kd_prune.py"), "--preset", "cifar10", "--name", "ours", "--dataset",
            f"folder:{job.folder / 'images'}", "--data-dir", str(job.out / "data"), "--out", str(job.out / "runs"),
            "--teacher-weights", str(job.folder / "teacher.pt"), "--teacher-epochs", "0",
            "--teacher-model", json.loads((job.folder / "teacher.json").read_text())["model"],
            "--seed", str(job.seed), "--search-seed", str(job.seed), "--cpus", str(job.threads),
            "--budget", f"{left / job.threads:.0f}s", *job.ours,
        ]  # fmt: skip
        print(" ".join(command), flush=True)
        child, interrupted = subprocess.Popen(command, cwd=REPO), False
        while child.poll() is None:
            time.sleep(0.5)
            if meter.seconds() > limit and not interrupted:
                child.send_signal(signal.SIGINT)
                interrupted = True
        if child.returncode:  # no time for one more trial, too, is said by code 2
            break
    sweep = job.out / "runs" / "sweeps" / "ours"
    records = [json.loads(path.read_text(encoding="utf-8")) | {"folder": path.parent} for path in found(sweep)]
    return [
        {"file": str(row["folder"] / "model.onnx"), "val": row["metrics"]["val_accuracy"]}
        for row in records
        if row["status"] == "finished"
    ]


def found(sweep: Path) -> list[Path]:
    """The records of a sweep's teacher and trials."""
    return [*sweep.glob("teacher/record.json"), *sorted(sweep.glob("trials/*/record.json"))]


def quantised(job: Job) -> list[dict[str, Any]]:
    """Arm D."""
    bench = Bench(job)
    return bench.ship(bench.teacher, job.out / "teacher")


def from_scratch(job: Job) -> list[dict[str, Any]]:
    """Arm B."""
    bench = Bench(job)
    points = bench.ship(bench.teacher, job.out / "teacher")
    models: dict[float, nn.Module] = {}
    probed: dict[float, float] = {}
    for share in bench.left_open(job.shares, points):
        width = widest(bench, share, job.out / "probe", probed)
        print(f"share {share}: width {width:.3f}", flush=True)
        models[share] = narrowed(bench.teacher, width, bench.side)
    soft = soft_logits(bench.teacher, bench.scale, bench.train)
    return points + train_all(job, models, FROM_SCRATCH, soft)


def widest(bench: Bench, share: float, stem: Path, probed: dict[float, float]) -> float:
    """The width, by bisection, whose untrained network keeps to a share; `probed` is what is known of widths."""
    narrow, wide = 0.02, 1.0
    for _ in range(6):
        width = (narrow + wide) / 2
        if width not in probed:
            probed[width] = bench.share(narrowed(bench.teacher, width, bench.side), stem)
        if probed[width] <= AIM * share:
            narrow = width
        else:
            wide = width
    return narrow


def torch_pruned(job: Job) -> list[dict[str, Any]]:
    """Arm C."""
    bench = Bench(job)
    points = bench.ship(bench.teacher, job.out / "teacher")
    shares = bench.left_open(job.shares, points)
    models = dict(zip(shares, cut(bench, shares, job.out / "probe"), strict=False))
    return points + train_all(job, models, TORCH_PRUNING, None)


def cut(bench: Bench, shares: Sequence[float], stem: Path) -> list[nn.Module]:
    """The teacher, pruned in small steps, as it is when it first keeps to each of the shares, the largest first."""
    model, example = copy.deepcopy(bench.teacher), torch.zeros(1, 3, bench.side, bench.side)
    pruner = tp.pruner.GroupNormPruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        # global left the first layer of an AlexNet 4 channels: 40.8 % instead of 51.5 % of 2,000 validation images, at
        # 4.5 times fewer MACs, after 40 CPU-seconds, one seed
        global_pruning=False,
        iterative_steps=400,
        pruning_ratio=1.0,
        round_to=4,
        ignored_layers=[last(model)],
    )
    done: list[nn.Module] = []
    macs, _ = tp.utils.count_ops_and_params(model, example)
    goal = macs / FINER
    while len(done) < len(shares) and pruner.current_step < pruner.iterative_steps:
        pruner.step()
        macs, _ = tp.utils.count_ops_and_params(model, example)
        if macs > goal:
            continue
        goal = macs / FINER
        model.zero_grad(set_to_none=True)
        reached = bench.share(model, stem)
        while len(done) < len(shares) and reached <= AIM * shares[len(done)]:
            done.append(copy.deepcopy(model))
            print(f"share {shares[len(done) - 1]}: {macs / 1e6:.2f} MMACs, {reached:.3f} of the latency", flush=True)
    return done


def train_all(job: Job, models: dict[float, nn.Module], recipe: Recipe, soft: Tensor | None) -> list[dict[str, Any]]:
    """Train the networks, each for an equal part of what is left of the budget; returns their points."""
    left = job.budget_s - Meter().seconds() - START_S * min(job.threads, len(models)) - TASK_S * len(models)
    if not models:
        return []
    seconds = max(LEAST_S, left / len(models))
    torch.save(soft, job.out / "soft.pt")
    tasks = []
    for share, model in models.items():
        torch.save(model, job.out / f"{share}.pt")
        tasks.append((job, share, recipe, seconds))
    if job.threads == 1:
        return [point for task in tasks for point in train_one(*task)]
    with multiprocessing.get_context("spawn").Pool(job.threads) as pool:
        return [point for points in pool.starmap(train_one, tasks, chunksize=1) for point in points]


def train_one(job: Job, share: float, recipe: Recipe, seconds: float) -> list[dict[str, Any]]:
    """Train one network."""
    bench = Bench(job)
    model = torch.load(job.out / f"{share}.pt", weights_only=False)
    soft = torch.load(job.out / "soft.pt")
    batches = views(bench.train, bench.scale, job.seed)
    steps = fit(model, batches, recipe, of_cpu(seconds), soft)
    print(f"share {share}: {steps} steps in {seconds:.0f} CPU-seconds", flush=True)
    return bench.ship(model, job.out / f"share-{share}")


def tuned(job: Job) -> list[dict[str, Any]]:
    """Arm E."""
    import efficacy_tune

    return efficacy_tune.search(job)


ARMS: dict[str, Callable[[Job], list[dict[str, Any]]]] = {
    "A": ours,
    "B": from_scratch,
    "C": torch_pruned,
    "D": quantised,
    "E": tuned,
}


def main(arm: str, given: str) -> None:
    """Run an arm; its points are written when it ends."""
    facts = json.loads(Path(given).read_text())
    folders = {name: Path(facts[name]) for name in ("folder", "out")}
    job = Job(**facts | folders | {name: tuple(facts[name]) for name in ("ours", "shares")})
    points = ARMS[arm](job)
    partial = job.out / f"points.{os.getpid()}"
    partial.write_text(json.dumps(points))
    partial.rename(job.out / "points.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
