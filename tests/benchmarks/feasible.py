"""What a sweep spends on candidates that a limit on latency rules out, where the limit rules out half of the ratios.

    python tests/benchmarks/feasible.py --out feasible
    python tests/benchmarks/feasible.py --out feasible --dataset cifar10 --train-limit 5000 --trials 30

Flags that are not listed go to kd_prune.py, behind: --preset quick --trials 30. The limit is the median latency of the
untrained student over the ratios that `structured` may remove; zeroed weights (`l1_unstructured`) make nothing faster,
so that method is ruled out as a whole. The sweep gets a store of its own: it has to find every latency by itself.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import attended, hardware
from optuna.distributions import CategoricalDistribution
from plain_tune import parsed, sweep_config

from sweeps.planning.reachable import time_alternating
from sweeps.search.config import SweepConfig
from trainables.config.candidate import CandidateConfig
from trainables.config.limits import SHAPE_LATENCY
from trainables.records.stages import DatasetRecord
from trainables.stages.data import prepared
from trainables.stages.export.writer import export_untrained
from trainables.stages.models.stored import build_for
from trainables.stages.pruning.methods import prune

DEFAULTS = ("--preset", "quick", "--trials", "30")
TRAINED = ("finished", "stopped")
GOAL = 0.02


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 the goal is met, 1 it is not, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="feasible.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("feasible"), help="a fresh folder (default: feasible)")
    parser.add_argument("--max-latency-ms", type=float, metavar="MS", help="this limit instead of the median")
    flags, extra = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    words = [*DEFAULTS, *extra]
    if flags.out.exists() and any(flags.out.iterdir()):
        parser.error(f"--out {flags.out}: holds files already; name a fresh folder.")
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has started this in the background
        signal.signal(number, signal.default_int_handler)
    try:
        return benchmark(flags, words)
    except KeyboardInterrupt:
        print("Interrupted.")
        return 130


def benchmark(flags: argparse.Namespace, words: list[str]) -> int:
    """Find the limit, run the sweep under it, read its records."""
    config = sweep_config(parsed(words, lenient=True)[1])
    dataset = prepared.prepare(config.search.base.data, config.places.data_dir)
    flags.out.mkdir(parents=True, exist_ok=True)
    print(hardware())
    print(f"flags of kd_prune.py: {' '.join(words)}", flush=True)
    ratios = pruning_ratios(config)
    times = latencies(config.search.base, dataset, ratios)
    limit = flags.max_latency_ms or statistics.median(times)
    print("latency ms by ratio: " + ", ".join(f"{r:g}: {t:.4f}" for r, t in zip(ratios, times, strict=True)))
    over = sum(time > limit for time in times)
    print(
        f"limit {limit:.4f} ms: {over} of {len(times)} ratios of structured are over it, unpruned is {times[0]:.4f} ms"
    )
    sweep = [sys.executable, str(Path(__file__).parents[2] / "sweeps" / "kd_prune.py"), *words, "--out", str(flags.out)]
    started = time.time()
    with (flags.out / "output.txt").open("w") as log:
        code = attended([*sweep, "--max-latency-ms", f"{limit:.6g}"], log)
    seconds = time.time() - started
    print(f"sweep: {seconds:.1f} s, exit code {code}")
    if code not in (0, 1):
        print((flags.out / "output.txt").read_text()[-2000:], file=sys.stderr)
        return 1
    records = [json.loads(path.read_text()) for path in flags.out.glob("sweeps/*/trials/*/record.json")]
    return report(records, limit)


def pruning_ratios(config: SweepConfig) -> list[float]:
    """The ratios of the space, smallest first; five of a range without steps."""
    asked: Any = config.search.space["pruning_ratio"]
    if isinstance(asked, CategoricalDistribution):
        return sorted(asked.choices)
    steps = 5 if asked.step is None else round((asked.high - asked.low) / asked.step) + 1
    return [round(float(ratio), 6) for ratio in np.linspace(asked.low, asked.high, steps)]


def latencies(config: CandidateConfig, dataset: DatasetRecord, ratios: Sequence[float]) -> list[float]:
    """p50 in milliseconds of the untrained student after `structured` pruning by each ratio."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for ratio in ratios:
            torch.manual_seed(0)
            model = build_for(config.student.student_model, dataset)
            size, classes = dataset.image_size, dataset.num_classes
            prune(model, method="structured", ratio=ratio, image_size=size, num_classes=classes, must_remove=False)
            path = Path(folder) / "untrained.onnx"
            export_untrained(
                model,
                mean=dataset.mean,
                std=dataset.std,
                image_size=size,
                class_names=dataset.class_names,
                recipe={},
                opset=config.export.opset,
                path=path,
            )
            threads, seconds = config.measure.latency_threads, config.measure.latency_seconds
            times.append(time_alternating(path, path, threads=threads, seconds=seconds)[0].latency_p50_ms)
    return times


def report(records: Sequence[dict[str, Any]], limit: float) -> int:
    """Print the two answers; 0 if both are as they should be."""
    spent = {row["trial_number"]: row["ended"] - row["started"] for row in records}
    refused = [row for row in records if row["status"] == "infeasible"]
    for_nothing = [row for row in refused if "val_accuracy" in row["metrics"]]
    trained = [row for row in records if row["status"] in TRAINED] + for_nothing
    other = len(records) - len(refused) - len([row for row in records if row["status"] in TRAINED])
    print(f"\n{len(records)} trials: {len(trained)} trained, {len(refused)} infeasible, {other} failed")
    timed = [row["metrics"] for row in trained if SHAPE_LATENCY in row["metrics"]]
    over = [row for row in timed if row[SHAPE_LATENCY] > limit]
    print(f"trained trials whose shape was over the limit: {len(over)} of {len(timed)}")
    again = [row["latency_p50_ms"] for row in timed if row["latency_p50_ms"] > limit]
    worst = f", the slowest by {100 * (max(again) / limit - 1):.1f} %" if again else ""
    print(f"trained trials whose file was over it when measured again: {len(again)} of {len(timed)}{worst}")
    print(f"trials found infeasible after training: {len(for_nothing)}")
    wasted, total = sum(spent[row["trial_number"]] for row in refused), sum(spent.values())
    share = wasted / total if total else 0.0
    print(f"seconds on infeasible trials: {wasted:.2f} of {total:.1f} trial seconds, {100 * share:.2f} %")
    if refused:
        each = sorted(spent[row["trial_number"]] for row in refused)
        print(f"an infeasible trial: median {statistics.median(each):.3f} s, longest {each[-1]:.3f} s")
    return 0 if not over and not for_nothing and refused and share < GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
