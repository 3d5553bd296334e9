"""What the driver costs as a sweep grows: 10,000 trials that train nothing, through everything else.

    python tests/benchmarks/scale.py --trials 10000 --out scale

Proposal, early stopping, record, the study in its journal, MLflow in SQLite, the front at the end: the parts of
`run_sweep`, in its order, without Ray. Milliseconds are means over the trials since the row before.
"""

import argparse
import json
import math
import os
import resource
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import optuna
from onnx import helper

from analysis.findings.front import front_members
from sweeps.running.outcome import publish
from sweeps.running.run import worker_of
from sweeps.running.tune.stopper import FrontStopper
from sweeps.search.config import SAMPLERS, SweepConfig
from sweeps.search.objectives import DIRECTIONS, UNITS, reference_point
from sweeps.search.presets import quick
from sweeps.search.sampling.searcher import StudySearcher, open_study
from sweeps.search.space import default_space, parse, tidy
from trainables.config.candidate import Candidate
from trainables.config.score import ExchangeRates, composite_score
from trainables.files import write_text
from trainables.records.encoding import to_json
from trainables.tracking.tracker import Tracker
from trainables.trials.task import TrialTask, task_of

ROWS = (100, 1_000, 2_000, 5_000, 10_000)
TEACHER = {"val_accuracy": 0.95, "latency_p50_ms": 2.0, "size_bytes": 44e6}
IMAGES = SimpleNamespace(name="digits", image_size=32)
PARTS = ("propose", "stopper", "record", "tell", "deliver")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scale.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000, metavar="N", help="(default: 10000)")
    parser.add_argument("--sampler", choices=[name for name in SAMPLERS if name != "grid"], default="tpe")
    parser.add_argument("--without-mlflow", action="store_true", help="leave the records on disk, and draw no front")
    parser.add_argument("--out", type=Path, default=Path("scale"), help="a fresh folder (default: scale)")
    flags = parser.parse_args(argv)
    if flags.out.exists():
        print(f"--out {flags.out}: exists already; name a fresh folder.", file=sys.stderr)
        return 2
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(f"{'trials':>8}{'MB':>8}" + "".join(f"{part:>10}" for part in PARTS) + f"{'front s':>10}  (ms a trial)")
    run(flags)
    shutil.rmtree(flags.out, ignore_errors=True)
    return 0


def run(flags: argparse.Namespace) -> None:
    """All trials; a line at every size of `ROWS`."""
    space = default_space() | {"learning_rate": parse("learning_rate", "1e-4:1e-2")}
    config = SweepConfig(name="scale").replace(
        out=flags.out, trials=flags.trials, sampler=flags.sampler, space=space, base=quick().search.base
    )
    config.folder.mkdir(parents=True)
    write_model(config.places.out / "model.onnx")
    rates, clock, rng = ExchangeRates(), Clock(), np.random.default_rng(0)

    def score(metrics: Mapping[str, float]) -> float:
        return composite_score(metrics, teacher_size_bytes=TEACHER["size_bytes"], rates=rates)

    study = open_study(config.folder / "study.journal", config.name, config.search)
    searcher = StudySearcher(
        study,
        config.search,
        tune_config=lambda number, params: task_for(config, number, params).tune_config(),
        score=score,
    )
    stopper = FrontStopper("pareto", rates, config.folder / "rungs.jsonl")
    tracker = None if flags.without_mlflow else tracker_of(config)
    for done in range(1, flags.trials + 1):
        one_trial(config, searcher, stopper, tracker, clock, rng, score)
        if done in ROWS or done == flags.trials:
            parts = "".join(f"{clock.take(part):10.1f}" for part in PARTS)
            print(f"{done:8}{memory_mb():8.0f}{parts}", end="", flush=True)
            print(f"{front(tracker, config) if tracker is not None else math.nan:10.1f}", flush=True)


def one_trial(
    config: SweepConfig,
    searcher: StudySearcher,
    stopper: FrontStopper,
    tracker: Tracker | None,
    clock: "Clock",
    rng: np.random.Generator,
    score: Any,
) -> None:
    """What the driver does for a trial, with made-up numbers where a worker would train."""
    clock.trials += 1
    with clock("propose"):
        carried = searcher.suggest("t")
    assert isinstance(carried, dict)
    trial = SimpleNamespace(config=carried, trial_id="t")
    task = task_of(trial)
    metrics = measured(task.candidate, rng)
    with clock("stopper"):
        for step in range(1, 7):
            report = metrics | {"stage": "student", "step": step, "steps": 6, "num_val": 5000, "epoch": step}
            stopper.on_trial_result(None, trial, report)
    with clock("record"):
        task.folder.mkdir(parents=True)
        os.link(config.places.out / "model.onnx", task.folder / "model.onnx")
        record = task.record(
            status="finished", metrics=metrics, files=("model.onnx",), started=time.time() - 1, ended=time.time()
        )
        write_text(task.folder / "record.json", to_json(record))
    with clock("tell"):
        searcher.on_trial_complete("t", metrics | {"final": True})
    if tracker is not None:
        with clock("deliver"):
            assert tracker.deliver(task.folder, {"score": score(metrics)}), tracker.away


def task_for(config: SweepConfig, number: int, params: Mapping[str, Any]) -> TrialTask:
    """What a sweep hands to a worker."""
    folder = config.folder / "trials" / f"{number:05}"
    return TrialTask(
        candidate=config.search.base.replace(**tidy(params)).resolve(IMAGES, device=config.devices.device),
        worker=worker_of(config),
        key=f"{config.name}/{folder.name}",
        folder=folder.resolve(),
        trial_number=number,
        limits=config.limits,
        teacher_val_accuracy=TEACHER["val_accuracy"],
        num_val=5000,
    )


def measured(candidate: Candidate, rng: np.random.Generator) -> dict[str, float]:
    """Numbers that depend on a candidate much as real ones do."""
    ratio, structured = candidate.prune.pruning_ratio, candidate.prune.pruning_method == "structured"
    left = (1 - ratio) ** 1.6 if structured else 1.0
    rate = abs(math.log10(candidate.student.learning_rate) + 3)
    return {
        "val_accuracy": float(np.clip(0.94 - 0.1 * ratio**2 - 0.02 * rate + rng.normal(0, 0.003), 0, 1)),
        "test_accuracy": 0.9,
        "latency_p50_ms": 1.5 * (0.2 + 0.8 * left) * rng.uniform(0.98, 1.02),
        "reference_latency_p50_ms": TEACHER["latency_p50_ms"],
        "size_bytes": 6e6 * left,
        "macs": 6e7 * left,
    }


def write_model(path: Path) -> None:
    """The smallest file that MLflow registers as a model: logits are the channels' means."""
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3])
    node = helper.make_node("ReduceMean", ["image", "axes"], ["logits"], keepdims=0)
    graph = helper.make_graph([node], "means", [image], [logits], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"class_names": json.dumps(["r", "g", "b"]), "image_size": "8"})
    onnx.save(model, str(path))


def tracker_of(config: SweepConfig) -> Tracker:
    """MLflow in a SQLite file, with the sweep's description."""
    uri = f"sqlite:///{config.places.out.resolve() / 'mlflow.db'}"
    tracker = Tracker(
        uri, experiment="scale", sweep="scale", sweep_id="scale", artifacts=config.places.out / "artifacts"
    )
    about = {"name": "scale", "directions": DIRECTIONS, "units": UNITS, "reference_point": reference_point(10)}
    described = about | {"teacher": TEACHER, "config": {"dataset": "none"}, "versions": {}}
    write_text(config.folder / "sweep.json", json.dumps(described))
    tracker.sweep_artifacts([config.folder / "sweep.json"])
    return tracker


def front(tracker: Tracker, config: SweepConfig) -> float:
    """Seconds until the front is drawn, on disk and in MLflow."""
    started = time.perf_counter()
    runs = publish(tracker, f"sqlite:///{config.places.out.resolve() / 'mlflow.db'}", config.folder / "front")
    assert len(front_members(runs))
    return time.perf_counter() - started


def memory_mb() -> float:
    """Resident memory of this process, 10^6 bytes; the peak where the system does not say more."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


class Clock:
    """Milliseconds by part."""

    def __init__(self) -> None:
        self.trials = 0
        self._seconds: dict[str, float] = defaultdict(float)
        self._taken: dict[str, int] = defaultdict(int)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - started

    def take(self, part: str) -> float:
        """Mean of a part since it was last taken."""
        count, self._taken[part] = self.trials - self._taken[part], self.trials
        return 1000 * self._seconds.pop(part, math.nan) / count


if __name__ == "__main__":
    raise SystemExit(main())
