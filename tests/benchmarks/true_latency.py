"""Whether a sweep's latencies are true: each file timed again alone, and what the sweep computed while it measured.

    python tests/benchmarks/true_latency.py --out true --times 3
    python tests/benchmarks/true_latency.py --out true --times 1 --dataset cifar10 --budget 20m

Flags that are not listed go to kd_prune.py, behind: --preset quick. Each sweep has a store of its own. Afterwards its
files are timed with nothing but ONNX Runtime: p50 of one random image on one thread, on one CPU, in five rounds over
all files; what counts is the median of the rounds, and their spread says what the machine itself varies by. The CPU
time of the others is counted in one more sweep, whose latencies do not count: to count is work, too.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from commands import hardware

from tests.sweeps.standing_still import used_while_measuring

REPO = Path(__file__).parents[2]
ROUNDS, WARM_S, TIMED_S = 5, 0.2, 0.5
GOAL_DIFFERENCE, GOAL_CORES, GOAL_NOT_CLEAN = 0.02, 0.02, 0.1
CLEAN = "clean"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 all goals are met, 1 one is not, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="true_latency.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("true"), help="a fresh folder (default: true)")
    parser.add_argument("--times", type=int, default=3, metavar="N", help="sweeps, one after the other (default: 3)")
    flags, extra = parser.parse_known_args(argv)
    if flags.out.exists() and any(flags.out.iterdir()):
        parser.error(f"--out {flags.out}: holds files already; name a fresh folder.")
    print(hardware(), flush=True)
    words = ["--preset", "quick", *extra]
    met = [_judge_latencies(flags.out / str(number), words) for number in range(1, flags.times + 1)]
    met.append(_count_cores(flags.out / "watched", words))
    return int(not all(met))


def _judge_latencies(out: Path, words: list[str]) -> bool:
    """Run a sweep, time its files alone, print both; returns whether the goals of latencies are met."""
    with _running(out, words) as sweep:
        sweep.wait()
    if sweep.returncode not in (0, 1):
        return False
    rows = [_row(record) for record in sorted(out.glob("sweeps/*/trials/*/record.json"))]
    return _report([row for row in rows if row])


@contextmanager
def _running(out: Path, words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep, which has ended when the block ends; print how long it took and stood still."""
    out.mkdir(parents=True)
    started = time.monotonic()
    with (out / "terminal.txt").open("w") as terminal:
        command = [sys.executable, str(REPO / "sweeps" / "kd_prune.py"), *words, "--out", str(out)]
        sweep = subprocess.Popen(command, stdout=terminal, stderr=terminal)
        yield sweep
    print(f"\nsweep {out.name}: {time.monotonic() - started:.0f} s, exit code {sweep.returncode}")
    if sweep.returncode not in (0, 1):
        print((out / "terminal.txt").read_text()[-2000:], file=sys.stderr)
    for line in (out / "terminal.txt").read_text().splitlines():
        if line.startswith("measuring:"):
            print(line)


def _count_cores(out: Path, words: list[str]) -> bool:
    """Run a sweep, print what its other processes used while one measured; returns whether that goal is met."""
    with _running(out, words) as sweep:
        used = used_while_measuring(sweep, out / "leases" / "cpu.room", timeout_s=24 * 3600)
    cores = used["cores"]
    print(
        f"{used['measurements']} measurements, {used['seconds']:.1f} s; cores used meanwhile: {sum(cores.values()):.4f}"
    )
    print("  " + ", ".join(f"{role} {share:.4f}" for role, share in sorted(cores.items(), key=lambda one: -one[1])))
    return sweep.returncode in (0, 1) and sum(cores.values()) < GOAL_CORES


def _row(record: Path) -> dict[str, Any] | None:
    """A finished trial: what it reported, its verdict, and its file."""
    read = json.loads(record.read_text())
    if read["status"] != "finished":
        return None
    return {
        "trial": read["trial_number"],
        "reported": read["metrics"]["latency_p50_ms"],
        "file": record.with_name("model.onnx"),
        "verdict": read["tags"]["latency_verdict"],
    }


def time_alone(file: Path) -> float:
    """p50 in milliseconds of one random image on one thread of one CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    image = image if "float" in entry.type else (255 * image).astype(np.uint8)
    took: list[float] = []
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    warm = time.perf_counter() + WARM_S
    while (begun := time.perf_counter()) < warm + TIMED_S:
        session.run(None, {entry.name: image})
        if begun > warm:
            took.append(1e3 * (time.perf_counter() - begun))
    os.sched_setaffinity(0, allowed)
    return float(np.median(took))


def _report(rows: list[dict[str, Any]]) -> bool:
    alone = [[time_alone(row["file"]) for row in rows] for _ in range(ROUNDS)]
    print("trial  reported ms  alone ms  +- rounds  difference  verdict")
    for row, times in zip(rows, np.transpose(alone), strict=True):
        middle = float(np.median(times))
        row["difference"] = row["reported"] / middle - 1
        spread = (times.max() - times.min()) / 2 / middle
        numbers = f"{row['reported']:11.4f}  {middle:8.4f}  {spread:9.1%}  {row['difference']:+10.1%}"
        print(f"{row['trial']:5}  {numbers}  {row['verdict']}")
    worst = max((abs(row["difference"]) for row in rows), default=1.0)
    not_clean = sum(row["verdict"] != CLEAN for row in rows)
    print(f"{not_clean} of {len(rows)} not clean; largest difference {worst:.1%}")
    return worst <= GOAL_DIFFERENCE and not_clean <= GOAL_NOT_CLEAN * len(rows)


if __name__ == "__main__":
    raise SystemExit(main())
