"""What the lease is worth: p50 of one exported model on an idle machine and in the middle of a sweep, with and without.

    python tests/benchmarks/clean_room.py --repeats 8

The model is an untrained MobileNetV3-Small for 32 px, measured in alternation with an untrained ResNet-18 by the same
code that a sweep uses. Alone first, which also tells ResNet-18's own time; then beside a sweep of the quick preset (its
flags may be given behind --, as in -- --trials 20), in turn under the sweep's lease and under one of its own that
nobody else respects. Goal: p50 with the lease, corrected for drift as a sweep reports it, within 2 % of idle. Also
printed: how much of the sweep's time its trials stood still for measuring.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from trainables.locks import DeviceLock
from trainables.records.latency import LatencyRecord
from trainables.stages.export.writer import export_untrained
from trainables.stages.measuring.beside_teacher import correction
from trainables.stages.measuring.clean_room import Job, measure_apart
from trainables.stages.models.build import build_model
from trainables.stages.models.devices import processor_name
from trainables.stages.runtimes.base import Artifact

IMAGE_SIZE, CLASSES = 32, 10
PAUSE_S = 2.0
"""Between two measurements: the sweep shall also train."""


def main() -> int:
    """Measure and print; 0 if the goal is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=8, help="measurements an arm")
    parser.add_argument("--seconds", type=float, default=2.0, help="for one measurement, at most")
    parser.add_argument("--runtime", default="onnxruntime_cpu", help="what runs the model")
    parser.add_argument("sweep", nargs="*", help="flags of the sweep, behind --")
    flags = parser.parse_args()
    print(f"hardware: {os.cpu_count()} x {processor_name()}, load {os.getloadavg()[0]:.2f}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = _job(folder, flags.seconds, flags.runtime)
        idle = [_measure(job, folder / "nobody") for _ in range(flags.repeats)]
        started = time.monotonic()
        own = statistics.median(theirs.latency_raw_p50_ms for _, theirs in idle)
        known = dataclasses.replace(job, reference_own_ms=own)
        with_lease, without = _beside_a_sweep(known, folder, flags.repeats, flags.sweep)
        arms = {"idle": idle, "sweep, with lease": with_lease, "sweep, without": without}
        return _report(arms, own, folder / "runs", time.monotonic() - started)


def _job(folder: Path, seconds: float, runtime: str) -> Job:
    files = []
    for name in ("mobilenet_v3_small", "resnet18"):
        torch.manual_seed(0)
        model = build_model(name, num_classes=CLASSES, image_size=IMAGE_SIZE)
        path = folder / f"{name}.onnx"
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
        files.append(Artifact(onnx=path))
    return Job(candidate=files[0], reference=files[1], runtime=runtime, threads=1, seconds=seconds)


def _measure(job: Job, leases: Path) -> tuple[LatencyRecord, LatencyRecord]:
    measured = measure_apart(job, DeviceLock(leases, "cpu"))
    return measured.candidate, measured.reference


def _beside_a_sweep(
    job: Job, folder: Path, repeats: int, words: Sequence[str]
) -> tuple[list[tuple[LatencyRecord, LatencyRecord]], list[tuple[LatencyRecord, LatencyRecord]]]:
    """Both arms in turn, from the sweep's first trial on; fewer than `repeats` if it ends before."""
    out = folder / "runs"
    command = [sys.executable, "sweeps/kd_prune.py", "--preset", "quick", "--name", "busy", "--out", str(out), *words]
    with_lease, without = [], []
    with (folder / "log").open("w") as log:
        sweep = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
        try:
            while sweep.poll() is None and not (out / "sweeps/busy/teacher/record.json").exists():
                time.sleep(0.5)
            time.sleep(5)  # the first trials start
            while sweep.poll() is None and len(without) < repeats:
                for leases, taken in ((out / "leases", with_lease), (folder / "nobody", without)):
                    time.sleep(PAUSE_S)
                    if sweep.poll() is None:
                        taken.append(_measure(job, leases))
            if sweep.wait():
                print((folder / "log").read_text()[-2000:])
        finally:
            sweep.kill()
    return with_lease, without


def _report(arms: dict[str, list[tuple[LatencyRecord, LatencyRecord]]], own: float, out: Path, seconds: float) -> int:
    base = statistics.median(ours.latency_raw_p50_ms for ours, _ in arms["idle"])
    heads = {"p50 ms": 10, "min": 9, "max": 9, "vs idle": 10, "reported": 12, "clean": 7, "tries": 7}
    print(f"\n{'arm':<20}{'n':>4}" + "".join(f"{head:>{width}}" for head, width in heads.items()))
    off = {}
    for arm, taken in arms.items():
        if not taken:
            print(f"{arm:<20}{0:>4}")
            continue
        raw = [ours.latency_raw_p50_ms for ours, _ in taken]
        told = [ours.latency_raw_p50_ms * correction(own, theirs.latency_raw_p50_ms) for ours, theirs in taken]
        off[arm] = statistics.median(told) / base - 1
        clean = sum(ours.verdict == "clean" for ours, _ in taken)
        tries = statistics.mean(ours.latency_attempts for ours, _ in taken)
        print(
            f"{arm:<20}{len(taken):>4}{statistics.median(raw):>10.4f}{min(raw):>9.4f}{max(raw):>9.4f}"
            f"{100 * (statistics.median(raw) / base - 1):>+9.1f}%{100 * off[arm]:>+11.1f}%{clean:>7}{tries:>7.1f}"
        )
    ours_s = sum(ours.latency_alone_s for arm in ("sweep, with lease",) for ours, _ in arms[arm])
    print(
        f"\nsweep {seconds:.0f} s; alone for its own measurements {_alone_s(out):.1f} s"
        f" ({100 * _alone_s(out) / seconds:.1f} %), for this benchmark's {ours_s:.1f} s"
    )
    return int(abs(off.get("sweep, with lease", 1.0)) > 0.02)


def _alone_s(out: Path) -> float:
    """Seconds that the sweep's own measurements held the machine alone."""
    total = 0.0
    for path in out.glob("store/*/*/record.json"):
        row = json.loads(path.read_text(encoding="utf-8"))
        total += row.get("latency_alone_s", 0.0) + (row.get("latency") or {}).get("latency_alone_s", 0.0)
    return total


if __name__ == "__main__":
    raise SystemExit(main())
