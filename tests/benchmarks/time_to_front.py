"""How much sooner kd_prune.py has the front that plain_tune.py ends with, on one machine, data set and budget.

    python tests/benchmarks/time_to_front.py --seeds 3 --out front
    python tests/benchmarks/time_to_front.py --seeds 3 --out front --without stopper,reuse,bank,store,actors

Flags that are not listed go to both scripts, behind: --preset quick --dataset cifar10 --train-limit 5000 --trials 30.
The scripts run in turn, each in a fresh folder OUT/ARM-SEED; the clock of each starts with its process. Afterwards all
exported files are timed again, alone on the machine and all in one way: only accuracy, shape and time tell the scripts
apart. Runs that are finished are not repeated: the same command goes on, and more --without may be added later.
"""

import argparse
import csv
import dataclasses
import json
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from commands import attended, hardware
from without import PARTS

from analysis.findings.pareto import hypervolume_over_trials, normalised
from sweeps.planning.reachable import time_alternating
from sweeps.search.objectives import reference_point

REPO = Path(__file__).parents[2]
DEFAULTS = ("--preset", "quick", "--dataset", "cifar10", "--train-limit", "5000", "--trials", "30")
FLAGS = {"stopper": ("--stopper", "off"), "reuse": ("--reuse-probability", "0")}
TIMES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run of one arm."""

    arm: str
    """`ours`, `plain` or `without-PART`."""
    seed: int
    seconds: float
    """Wall time of the process."""
    ends: dict[str, int]
    """How many trials ended how."""
    points: pd.DataFrame
    """One row a candidate in the order of `wall_s`, seconds since the process began."""
    teacher_size_bytes: float


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 a script failed, 2 bad input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="time_to_front.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("time_to_front"), help="(default: time_to_front)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1 (default: 3)")
    known = ",".join((*FLAGS, *PARTS))
    parser.add_argument("--without", default="", metavar="PARTS", help=f"also ours without each of these: {known}")
    parser.add_argument("--max-seconds", type=float, metavar="S", help="interrupt a run after S seconds")
    parser.add_argument("--retime-seconds", type=float, default=0.5, metavar="S", help="a file; 0 keeps what was noted")
    flags, extra = parser.parse_known_args(words)
    parts = [part for part in flags.without.split(",") if part]
    if unknown := sorted(set(parts) - {*FLAGS, *PARTS}):
        parser.error(f"--without {unknown[0]}: known are {known}.")
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has started this in the background
        signal.signal(number, signal.default_int_handler)
    try:
        return benchmark(flags, ["ours", "plain", *(f"without-{part}" for part in parts)], [*DEFAULTS, *extra])
    except KeyboardInterrupt:
        print("Interrupted. Delete the folder of the unfinished run, then the same command goes on after the last one.")
        return 130
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1


def benchmark(flags: argparse.Namespace, arms: Sequence[str], words: list[str]) -> int:
    """Run what is missing, then compare."""
    from plain_tune import parsed, sweep_config

    from trainables.stages.data import prepared

    config = sweep_config(parsed(words)[1])
    dataset = prepared.prepare(config.search.base.data, config.places.data_dir)  # decoded before any clock starts
    flags.out.mkdir(parents=True, exist_ok=True)
    print(hardware())
    print(f"flags of both: {' '.join(words)}", flush=True)
    runs = []
    for seed in range(flags.seeds):
        for arm in arms if seed % 2 == 0 else reversed(arms):
            folder = flags.out / f"{arm}-{seed}"
            attend(folder, [*command(arm), *words, "--out", str(folder), *seeded(seed)], flags.max_seconds)
            runs.append(read_run(folder, arm, seed))
            again = retime(runs[-1], folder, flags.retime_seconds, config.search.base.measure.latency_threads)
            runs[-1] = dataclasses.replace(runs[-1], points=again)
    report(runs, arms, list(reference_point(dataset.num_classes).values()), flags.out)
    return 0


def seeded(seed: int) -> list[str]:
    return ["--seed", str(seed), "--search-seed", str(seed)]


def command(arm: str) -> list[str]:
    """The script of an arm, with its own flags."""
    part = arm.removeprefix("without-")
    if arm == "plain":
        return [sys.executable, str(Path(__file__).with_name("plain_tune.py"))]
    if part in PARTS:
        return [sys.executable, str(Path(__file__).with_name("without.py")), part]
    return [sys.executable, str(REPO / "sweeps" / "kd_prune.py"), *FLAGS.get(part, ())]


def attend(folder: Path, words: list[str], max_seconds: float | None) -> None:
    """Run a script to its end, its output in FOLDER.log; FOLDER.json says that, when and how it ended.

    Raises:
        RuntimeError: if it failed, or the folder holds a run that never ended.
    """
    done, log = folder.with_name(f"{folder.name}.json"), folder.with_name(f"{folder.name}.log")
    if done.exists():
        return
    if folder.exists():
        raise RuntimeError(f"{folder} holds a run that did not end; delete it.")
    started = time.time()
    print(f"{folder.name} ...", flush=True)
    with log.open("w") as file:
        code = attended(words, file, max_seconds)
    seconds = time.time() - started
    print(f"{folder.name}: {seconds:.1f} s, exit code {code}", flush=True)
    fine = (0,) if folder.name.startswith("plain") else (0, 1)  # kd_prune.py says 1 when some trials failed
    if code not in fine and not (code == 130 and max_seconds is not None and seconds >= max_seconds):
        raise RuntimeError(f"{folder.name} ended with code {code}; see {log}.")
    done.write_text(json.dumps({"started": started, "seconds": seconds, "exit_code": code, "hardware": hardware()}))


def read_run(folder: Path, arm: str, seed: int) -> Run:
    """What a finished run left in its folder."""
    ended = json.loads(folder.with_name(f"{folder.name}.json").read_text(encoding="utf-8"))
    if arm == "plain":
        points = pd.read_csv(folder / "points.csv")
        points["file"] = [str(folder / name) for name in points["file"]]
        asked = json.loads((folder / "ends.json").read_text(encoding="utf-8"))
        ends, size = asked, float((folder / "teacher.onnx").stat().st_size)
    else:
        (sweep,) = (path.parent for path in folder.glob("sweeps/*/teacher"))
        records = [json.loads(path.read_text(encoding="utf-8")) for path in sweep.glob("trials/*/record.json")]
        rows = [
            {"wall_s": row["ended"] - ended["started"], "trial": row["trial_number"], **row["metrics"]}
            | {"file": str(sweep / "trials" / f"{row['trial_number']:05}" / "model.onnx")}
            for row in records
            if row["status"] == "finished"
        ]
        points, ends = pd.DataFrame(rows), dict(Counter(row["status"] for row in records))
        size = json.loads((sweep / "teacher" / "record.json").read_text(encoding="utf-8"))["metrics"]["size_bytes"]
    if points.empty:
        raise RuntimeError(f"{folder.name} has no finished trial; see {folder}.log.")
    kept = ["wall_s", "trial", "val_accuracy", "latency_p50_ms", "reference_latency_p50_ms", "size_bytes", "file"]
    points = points[kept].sort_values("wall_s", ignore_index=True)
    return Run(arm=arm, seed=seed, seconds=ended["seconds"], ends=ends, points=points, teacher_size_bytes=size)


def retime(run: Run, folder: Path, seconds: float, threads: int) -> pd.DataFrame:
    """The points with latencies taken now, in alternation with the run's teacher; kept in FOLDER.latency.csv."""
    if seconds <= 0:
        return run.points
    cache = folder.with_name(f"{folder.name}.latency.csv")
    if not cache.exists():
        teacher = folder / "teacher.onnx"
        if run.arm != "plain":
            (teacher,) = folder.glob("sweeps/*/teacher/model.onnx")
        rows = []
        for file in run.points["file"]:
            timed = time_alternating(Path(file), teacher, threads=threads, seconds=seconds)
            rows.append([record.latency_p50_ms for record in timed])
        pd.DataFrame(rows, columns=["latency_p50_ms", "reference_latency_p50_ms"]).to_csv(cache, index=False)
    return run.points.assign(**pd.read_csv(cache))


def report(runs: Sequence[Run], arms: Sequence[str], corner: list[float], out: Path) -> None:
    """Print and write hypervolume over time, and the ratios."""
    curves = {(run.arm, run.seed): curve(run, corner) for run in runs}
    print(f"\nreference point {corner}: error points, log2 latency and log2 size against the teacher")
    print(f"\nhypervolume (points * doublings^2, median of {len(runs) // len(arms)} seeds) over wall seconds")
    print(f"{'seconds':>10}" + "".join(f"{arm:>18}" for arm in arms))
    last = max(float(times[-1]) for times, _ in curves.values())
    for moment in np.linspace(last / TIMES, last, TIMES):
        values = [statistics.median(at(curves[key], moment) for key in curves if key[0] == arm) for arm in arms]
        print(f"{moment:10.1f}" + "".join(f"{value:18.2f}" for value in values))
    print(f"\n{'arm':>18}{'seed':>6}{'wall s':>10}{'first s':>10}{'last hv':>12}{'reached s':>12}{'ratio':>8}  trials")
    ratios: dict[str, list[float]] = {arm: [] for arm in arms}
    for run in sorted(runs, key=lambda run: (arms.index(run.arm), run.seed)):
        times, volumes = curves[run.arm, run.seed]
        goal = float(curves["plain", run.seed][1][-1])
        reached = reach(curves[run.arm, run.seed], goal)
        ratio = reach(curves["plain", run.seed], goal) / reached
        ratios[run.arm].append(ratio)
        shown = f"{reached:12.1f}{ratio:8.2f}" if ratio else f"{'never':>12}{'-':>8}"
        ends = ", ".join(f"{count} {how}" for how, count in sorted(run.ends.items()))
        numbers = f"{run.seconds:10.1f}{times[0]:10.1f}{volumes[-1]:12.2f}"
        print(f"{run.arm:>18}{run.seed:>6}{numbers}{shown}  {ends}")
    print("\ntime of plain_tune.py to its own final hypervolume / time to the same hypervolume, median over seeds:")
    for arm, values in ratios.items():
        missed = f"; never reached by {values.count(0.0)} of {len(values)} seeds" if 0.0 in values else ""
        print(f"{arm:>18}{statistics.median(values):8.2f}{missed}")
    _write(runs, curves, out)


def curve(run: Run, corner: list[float]) -> tuple[Any, Any]:
    """(seconds, hypervolume) after each candidate."""
    teacher = {"latency_p50_ms": float("nan"), "size_bytes": run.teacher_size_bytes}
    points = normalised(run.points, teacher)
    return run.points["wall_s"].to_numpy(), hypervolume_over_trials(points.to_numpy(), corner)


def at(curve: tuple[Any, Any], moment: float) -> float:
    """The hypervolume at a moment."""
    times, volumes = curve
    before = int(np.searchsorted(times, moment + 1e-9, side="right"))
    return float(volumes[before - 1]) if before else 0.0


def reach(curve: tuple[Any, Any], goal: float) -> float:
    """Seconds until the hypervolume is `goal`; infinity if it never is."""
    times, volumes = curve
    there = np.flatnonzero(volumes >= goal * (1 - 1e-12))
    return float(times[there[0]]) if len(there) else float("inf")


def _write(runs: Sequence[Run], curves: Mapping[tuple[str, int], tuple[Any, Any]], out: Path) -> None:
    with (out / "points.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = ("trial", "val_accuracy", "latency_ratio", "size_ratio", "hypervolume")
        writer.writerow(("arm", "seed", "wall_s", *names))
        for run in runs:
            volumes = curves[run.arm, run.seed][1]
            for row, volume in zip(run.points.itertuples(), volumes, strict=True):
                ratios = (row.latency_p50_ms / row.reference_latency_p50_ms, row.size_bytes / run.teacher_size_bytes)
                writer.writerow((run.arm, run.seed, round(row.wall_s, 3), row.trial, row.val_accuracy, *ratios, volume))
    print(f"\npoints: {out / 'points.csv'}")


if __name__ == "__main__":
    raise SystemExit(main())
