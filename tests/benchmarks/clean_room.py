"""Does the clock tell the truth, and does it notice what makes it lie: one file on an idle machine and on busy ones.

    python tests/benchmarks/clean_room.py --repeats 8

The file is an untrained MobileNetV3-Small for 32 px, measured by the code that a sweep uses in alternation with
teachers of 0.5, 17 and 93 MB (linear layers, AlexNet, linear layers). For each teacher: on the idle machine, inside a
sweep of the quick preset (its flags may be given behind --, as in -- --trials 40) under the sweep's lease and under one
of its own that nobody else respects, and beside a foreign process that streams memory. One sweep runs for all teachers.
Goals: p50 with the lease within 2 % of idle; every measurement beside the stream is told as disturbed. Printed, too:
the p50 of the file alone, by a process that imports onnxruntime and numpy only, and how much of the sweep's time its
trials stood still for its own measurements.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from trainables.locks import DeviceLock
from trainables.stages.export.writer import export_untrained
from trainables.stages.measuring.clean_room import measure_apart
from trainables.stages.measuring.process import Job, Measured
from trainables.stages.models.build import build_model
from trainables.stages.models.devices.processor import processor_name
from trainables.stages.runtimes.base import Artifact

IMAGE_SIZE, CLASSES = 32, 10
PAUSE_S = 1.0
"""Between two measurements: the sweep shall also train."""
ARMS = ("idle", "sweep, with lease", "sweep, without", "beside a stream")
STREAM = """
import numpy as np
source, target = np.ones(2**27, dtype=np.uint8), np.ones(2**27, dtype=np.uint8)
print(flush=True)
while True:
    np.copyto(target, source)
"""
ALONE = """
import sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.add_session_config_entry("session.set_denormal_as_zero", "1")
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
image = session.get_inputs()[0]
feed = {image.name: np.random.default_rng(0).random((1, *image.shape[1:]), dtype=np.float32)}
times, end = [], time.perf_counter() + 2
while time.perf_counter() < end:
    start = time.perf_counter_ns()
    session.run(None, feed)
    times.append(time.perf_counter_ns() - start)
print(np.median(times[len(times) // 10:]) / 1e6)
"""

Taken = dict[tuple[str, str], list[Measured]]
"""(teacher, arm) -> measurements."""


def main() -> int:
    """Measure and print; 0 if both goals are reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=8, help="measurements an arm and teacher")
    parser.add_argument("--seconds", type=float, default=2.0, help="for one measurement, at most")
    parser.add_argument("--runtime", default="onnxruntime_cpu", help="what runs the files")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS, help="which of them (default: all)")
    parser.add_argument("sweep", nargs="*", help="flags of the sweep, behind --")
    flags = parser.parse_args()
    print(f"hardware: {os.cpu_count()} x {processor_name()}, load {os.getloadavg()[0]:.2f}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder, taken = Path(name), Taken()
        jobs = _jobs(folder, flags.seconds, flags.runtime)
        alone = [_alone(folder / "student.onnx") for _ in range(3)]
        if "idle" in flags.arms:
            _measure(jobs, "idle", folder / "nobody", taken, flags.repeats)
        if "beside a stream" in flags.arms:
            with _stream():
                _measure(jobs, "beside a stream", folder / "nobody", taken, flags.repeats)
        wanted = [arm for arm in ARMS[1:3] if arm in flags.arms]
        seconds = _beside_a_sweep(jobs, wanted, folder, taken, flags.repeats, flags.sweep) if wanted else 0.0
        alone += [_alone(folder / "student.onnx") for _ in range(3)]
        reached = _report(taken, alone)
        if seconds:
            own_s = _alone_s(folder / "runs")
            print(f"\nsweep {seconds:.0f} s; alone for its own measurements {own_s:.1f} s ({own_s / seconds:.1%})")
    return int(not reached)


def _jobs(folder: Path, seconds: float, runtime: str) -> dict[str, Job]:
    """The student's file beside each teacher's, by the teacher's size."""
    candidate = _export(folder / "student.onnx", build_model("mobilenet_v3_small", num_classes=CLASSES, image_size=32))
    wide = nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 3500), nn.ReLU(), nn.Linear(3500, 3500), nn.Linear(3500, CLASSES)
    )
    teachers = {
        "small": nn.Sequential(nn.Flatten(), nn.Linear(3072, 40), nn.ReLU(), nn.Linear(40, CLASSES)),
        "medium": build_model("alexnet", num_classes=CLASSES, image_size=IMAGE_SIZE),
        "large": nn.Sequential(nn.Flatten(), *wide),
    }
    jobs = {}
    for name, model in teachers.items():
        file = _export(folder / f"{name}.onnx", model)
        size = f"{file.onnx.stat().st_size / 1e6:.1f} MB"
        jobs[size] = Job(candidate=candidate, reference=file, runtime=runtime, threads=1, seconds=seconds)
    return jobs


def _export(path: Path, model: nn.Module) -> Artifact:
    torch.manual_seed(0)
    export_untrained(
        model.eval(),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        image_size=IMAGE_SIZE,
        class_names=[str(i) for i in range(CLASSES)],
        recipe={},
        opset=20,
        path=path,
    )
    return Artifact(onnx=path)


def _alone(path: Path) -> float:
    """p50 of a file, ms, by a loop of its own."""
    run = subprocess.run([sys.executable, "-c", ALONE, str(path)], capture_output=True, text=True, check=True)
    return float(run.stdout)


def _measure(jobs: dict[str, Job], arm: str, leases: Path, taken: Taken, repeats: int) -> None:
    """One measurement with each teacher in turn, `repeats` times."""
    for _ in range(repeats):
        for teacher, job in jobs.items():
            taken.setdefault((teacher, arm), []).append(measure_apart(job, DeviceLock(leases, "cpu")))


@contextmanager
def _stream() -> Iterator[None]:
    """A process that copies 128 MB without end; the clean room binds itself to another CPU."""
    process = subprocess.Popen([sys.executable, "-c", STREAM], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


def _beside_a_sweep(
    jobs: dict[str, Job], arms: Sequence[str], folder: Path, taken: Taken, repeats: int, words: Sequence[str]
) -> float:
    """The arms in turn, from the first trial on, `repeats` times or until the sweep ends; returns its seconds."""
    out, began = folder / "runs", time.monotonic()
    command = [sys.executable, "sweeps/kd_prune.py", "--preset", "quick", "--name", "busy", "--out", str(out), *words]
    with (folder / "log").open("w") as log:
        sweep = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
        try:
            while sweep.poll() is None and not (out / "sweeps/busy/teacher/record.json").exists():
                time.sleep(0.5)
            time.sleep(5)  # the first trials start
            for _ in range(repeats):
                for arm in arms:
                    leases = out / "leases" if arm == ARMS[1] else folder / "nobody"
                    for teacher, job in jobs.items():
                        time.sleep(PAUSE_S)
                        if sweep.poll() is None:
                            _measure({teacher: job}, arm, leases, taken, 1)
            if sweep.wait():
                print((folder / "log").read_text()[-2000:])
        finally:
            sweep.kill()
    return time.monotonic() - began


def _report(taken: Taken, alone: Sequence[float]) -> bool:
    """Print a row an arm and teacher; whether the goals are reached."""
    print(f"\nalone, before and after: p50 {statistics.median(alone):.4f} ms ({min(alone):.4f} to {max(alone):.4f})")
    heads = {"n": 4, "p50 ms": 10, "min": 9, "max": 9, "vs idle": 9, "vs alone": 10, "ratio": 9, "+-": 7, "clean": 7}
    print(f"\n{'teacher':<10}{'arm':<20}" + "".join(f"{head:>{width}}" for head, width in heads.items()) + "  doubts")
    reached = True
    for (teacher, arm), found in sorted(taken.items(), key=lambda item: (item[0][0], ARMS.index(item[0][1]))):
        p50 = [one.candidate.latency_p50_ms for one in found]
        middle = statistics.median(p50)
        idle = [one.candidate.latency_p50_ms for one in taken.get((teacher, "idle"), found)]
        off = middle / statistics.median(idle) - 1
        clean = sum(one.candidate.verdict == "clean" for one in found)
        doubts = sorted({one.candidate.verdict.partition(":")[0] for one in found} - {"clean"})
        ratio, width = (
            statistics.median(getattr(one, name) for one in found) for name in ("ratio", "ratio_half_width")
        )
        print(
            f"{teacher:<10}{arm:<20}{len(found):>4}{middle:>10.4f}{min(p50):>9.4f}{max(p50):>9.4f}{off:>+9.1%}"
            f"{middle / statistics.median(alone) - 1:>+10.1%}{ratio:>9.3f}{width:>7.1%}{clean:>7}  {', '.join(doubts)}"
        )
        reached &= not (arm == ARMS[1] and abs(off) > 0.02) and not (arm == ARMS[3] and clean > 0)
    return reached


def _alone_s(out: Path) -> float:
    """Seconds that the sweep's own measurements held the machine alone."""
    total = 0.0
    for path in out.glob("store/*/*/record.json"):
        row = json.loads(path.read_text(encoding="utf-8"))
        took = row.get("candidate")
        total += row.get("latency_alone_s", 0.0) + (took.get("latency_alone_s", 0.0) if isinstance(took, dict) else 0.0)
    return total


if __name__ == "__main__":
    raise SystemExit(main())
