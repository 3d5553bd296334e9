"""What the machinery costs: the wall time of trials that train for one second each, against the ideal.

    python tests/benchmarks/overhead.py --trials 100 --out overhead

Ours is `run_sweep` as kd_prune.py calls it, with trials and a teacher that only pass time: search in a journal, early
stopping, records, delivery to MLflow with files, progress, the front at the end. Plain is a function trainable that
does the same, with OptunaSearch and MLflowLoggerCallback (save_artifact). Every trial reports four epochs, leaves a
file of 1 MB and imports torch. No trial is stopped early: all accuracies are equal until the end.
"""

import argparse
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from commands import attended, hardware

EPOCHS = 4
FILE_BYTES = 1_000_000


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 a side failed, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="overhead.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--trials", type=int, default=100, metavar="N", help="(default: 100)")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of a trial (default: 1)")
    parser.add_argument("--work", choices=("sleep", "spin"), default="sleep", help="spin: CPU seconds (default: sleep)")
    parser.add_argument("--cpus", type=int, default=cores, metavar="N", help=f"trials at once (default: all, {cores})")
    parser.add_argument("--out", type=Path, default=Path("overhead"), help="a fresh folder (default: overhead)")
    parser.add_argument("--only", choices=("ours", "plain"), help="one side, in this process; prints its JSON")
    flags = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has started this in the background
        signal.signal(number, signal.default_int_handler)
    try:
        return one_side(flags) if flags.only else both_sides(flags, sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return 130


def both_sides(flags: argparse.Namespace, words: list[str]) -> int:
    """Run each side in a fresh process and compare."""
    print(hardware())
    print(f"{flags.trials} trials of {flags.seconds:g} s ({flags.work}), {flags.cpus} at once", flush=True)
    ideal = flags.trials * flags.seconds / flags.cpus
    print(f"{'':>8}{'command s':>12}{'trials s':>12}{'ideal s':>10}{'first s':>10}{'ms/trial':>12}{'ms/slot':>12}")
    for side in ("ours", "plain"):
        folder = flags.out / side
        if folder.exists():
            print(f"--out {flags.out}: holds {side} already; name a fresh folder.", file=sys.stderr)
            return 2
        folder.mkdir(parents=True)
        started = time.time()
        with (flags.out / f"{side}.log").open("w") as log:
            code = attended([sys.executable, __file__, *words, "--only", side], log)
        if code != 0 or not (folder / "times.json").exists():
            print(f"{side} ended with code {code}; see {flags.out / side}.log.", file=sys.stderr)
            return 1
        times = json.loads((folder / "times.json").read_text())
        row = _row(times, ideal, flags)
        print(f"{side:>8}{time.time() - started:12.1f}{row}", flush=True)
    print(_LEGEND)
    return 0


_LEGEND = """
command s: wall time of the whole process. trials s: of Tuner.fit() for the trials. first s: fit() to the end of the
first trial. ms/slot: (last end - first end - ideal between them) / rounds between them: what a place loses between two
trials once all has started; a round is one trial in every place. ms/trial: ms/slot / trials at once."""


def _row(times: dict[str, Any], ideal: float, flags: argparse.Namespace) -> str:
    ends = sorted(times["ends"])
    rounds = max(1, math.ceil(flags.trials / flags.cpus) - 1)
    added = 1000 * ((ends[-1] - ends[0]) / rounds - flags.seconds)
    first = ends[0] - times["fit_started"]
    return f"{times['fit_s']:12.1f}{ideal:10.1f}{first:10.1f}{added / flags.cpus:12.1f}{added:12.1f}"


def one_side(flags: argparse.Namespace) -> int:
    """Run one side; leaves times.json in its folder."""
    folder = flags.out / flags.only
    folder.mkdir(parents=True, exist_ok=True)
    side = ours if flags.only == "ours" else plain
    times = side(flags, folder.resolve())
    missing = flags.trials - len(times["ends"])
    if missing:
        print(f"{missing} of {flags.trials} trials did not end", file=sys.stderr)
        return 1
    (folder / "times.json").write_text(json.dumps(times))
    return 0


def work(flags: argparse.Namespace) -> Callable[[], None]:
    """One epoch of nothing."""
    seconds, spin = flags.seconds / EPOCHS, flags.work == "spin"

    def epoch() -> None:
        if not spin:
            time.sleep(seconds)
            return
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    return epoch


def result_of(number: int) -> dict[str, float]:
    """Numbers of the shape of a candidate's; no two trials alike."""
    return {
        "val_accuracy": 0.5 + 0.4 * ((number * 0.618) % 1),
        "test_accuracy": 0.5,
        "latency_p50_ms": 1.0 + (number * 0.414) % 1,
        "latency_p90_ms": 2.0,
        "latency_p99_ms": 3.0,
        "latency_n": 100,
        "reference_latency_p50_ms": 4.0,
        "size_bytes": FILE_BYTES,
        "num_params": 100_000,
        "num_nonzero_params": 100_000,
        "macs": 1_000_000,
        "parity_max_abs": 0.0,
        "parity_agreement": 1.0,
        "num_val": 100,
        "num_test": 100,
        "train_time_s": 1.0,
        "reused_time_s": 0.0,
    }


def template_in(out: Path) -> Path:
    """The file that every trial leaves a copy of: valid, for what is on the front becomes a registered model."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    weights = np.zeros((FILE_BYTES // 12, 3), np.float32)
    constants = [
        numpy_helper.from_array(weights, "weights"),
        helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
    ]
    constants.append(helper.make_tensor("zero", TensorProto.INT64, [1], [0]))
    nodes = [helper.make_node("Gather", ["weights", "zero"], ["row"])]
    nodes += [helper.make_node("ReduceMean", ["image", "axes"], ["means"], keepdims=0)]
    nodes += [helper.make_node("Add", ["means", "row"], ["logits"])]
    graph = helper.make_graph(nodes, "means", [image], [logits], constants)
    path = out.resolve() / "template.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def ours(flags: argparse.Namespace, out: Path) -> dict[str, Any]:
    """A whole sweep whose trials only pass time."""
    from rich.console import Console

    from sweeps.running import launch, trials
    from sweeps.search.config import SweepConfig
    from trainables.config.candidate import CandidateConfig, DataConfig
    from trainables.stages.data import prepared
    from trainables.trials.candidate import CandidateTrial
    from trainables.trials.teacher import TeacherTrial

    assert launch.tuner is trials.tuner
    nap, times = _nap(flags, template_in(out)), dict[str, float]()
    launch.tuner = trials.tuner = _clocked(launch.tuner, {CandidateTrial: nap, TeacherTrial: nap}, times)
    base = CandidateConfig().replace(student_epochs=EPOCHS, recovery_epochs=0)
    config = SweepConfig(name="overhead").replace(
        out=out, data_dir=out / "data", trials=flags.trials, cpus=flags.cpus, base=base
    )
    try:
        launch.run_sweep(config, prepared.prepare(DataConfig(dataset="digits"), config.places.data_dir), Console())
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None
    assert "fit_s" in times, "the trials ran elsewhere than in what is clocked here"
    records = config.folder.glob("trials/*/record.json")
    return times | {"ends": [json.loads(path.read_text())["ended"] for path in records]}


def _nap(flags: argparse.Namespace, template: Path) -> type:
    """A trainable in the place of a candidate's and of the teacher's; Ray pickles it with all it needs."""
    from trainables.records.stages import EpochRecord, ShapeRecord
    from trainables.trials.base import ChainTrial

    epoch = work(flags)

    class Nap(ChainTrial):
        def begin(self, task: Any, place: Any) -> Generator[Any, None, tuple[EpochRecord, ...]]:
            size = {"size_bytes": FILE_BYTES, "num_params": 100_000, "macs": 1_000_000}
            times = {"latency_p50_ms": 1.0, "reference_latency_p50_ms": 4.0, "seconds": 0.0}
            times |= {"latency_verdict": "clean", "latency_alone_s": 0.0}
            yield ShapeRecord(channel_ratio=0.0, **size, **times)
            curve = []
            for number in range(1, EPOCHS + 1):
                epoch()
                known = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
                known |= {"learning_rate": 1e-3, "seconds": flags.seconds / EPOCHS}
                curve.append(EpochRecord(stage="student", epoch=number, epochs=EPOCHS, **known))
                yield curve[-1]
            return tuple(curve)

        def finish(self, record: Any) -> dict[str, Any]:
            folder = self.task.folder
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(template, folder / "model.onnx")
            metrics = result_of(self.task.trial_number or 0)
            self.write_result(status="finished", metrics=metrics, curve=record, files=("model.onnx",))
            return metrics | {"excess": {}}

    return Nap


def _clocked(make: Callable[..., Any], stand_ins: Mapping[type, type], times: dict[str, float]) -> Callable[..., Any]:
    """`make` for stand-ins of its trainables; the Tuner for the trials notes when it started and how long it took."""

    def clocked(trainable: type, *args: Any, **settings: Any) -> Any:
        tuner = make(stand_ins[trainable], *args, **settings)
        if settings["name"] == "trials":
            fit = tuner.fit

            def timed_fit() -> Any:
                times["fit_started"] = time.time()
                try:
                    return fit()
                finally:
                    times["fit_s"] = time.time() - times["fit_started"]

            tuner.fit = timed_fit
        return tuner

    return clocked


def plain(flags: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The same with what Ray brings along."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from mlflow import MlflowClient
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    from sweeps.search.space import default_space

    epoch, template = work(flags), template_in(out)

    def nap(config: dict[str, Any]) -> None:
        import torch  # noqa: F401  # a trial that trains needs it

        context = tune.get_context()
        for _ in range(EPOCHS):
            epoch()
            tune.report({"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5, "score": 1.0})
        shutil.copyfile(template, Path(context.get_trial_dir()) / "model.onnx")
        number = int(context.get_trial_name().rpartition("_")[2], 16)
        tune.report(result_of(number) | {"score": 1.0, "ended": time.time()})

    searched = ("temperature", "alpha", "learning_rate", "pruning_method", "pruning_ratio")
    space = {name: distribution for name, distribution in default_space().items() if name in searched}
    tracking_uri = f"sqlite:///{out / 'mlflow.db'}"
    MlflowClient(tracking_uri).create_experiment("plain", artifact_location=(out / "artifacts").as_uri())
    ray.init(address="local", num_cpus=flags.cpus, include_dashboard=False, log_to_driver=False)
    logger = MLflowLoggerCallback(tracking_uri=tracking_uri, experiment_name="plain", save_artifact=True)
    tuner = tune.Tuner(
        tune.with_resources(nap, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(space=space, metric="score", mode="max", seed=0),
            num_samples=flags.trials,
            max_concurrent_trials=flags.cpus,
        ),
        run_config=tune.RunConfig(name="trials", storage_path=str(out / "tune"), verbose=1, callbacks=[logger]),
    )
    started = time.time()
    results = tuner.fit()
    seconds = time.time() - started
    ends = [result.metrics["ended"] for result in results if result.metrics and "ended" in result.metrics]
    return {"fit_started": started, "fit_s": seconds, "ends": ends}


if __name__ == "__main__":
    raise SystemExit(main())
