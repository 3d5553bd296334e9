"""What test accuracy is left at 1/2, 1/4, 1/8 and 1/16 of a teacher's latency, for equal CPU-seconds: ours and others.

    python tests/benchmarks/efficacy.py --data cifar10 --seeds 0,1,2 --budget-s 3600 --out efficacy

DIR of --data has train/CLASS/* and test/CLASS/*, small images of one size. One split of train and one teacher, of the
first seed, serve all arms and seeds. For every seed the arms run in turn, each a process with a budget of CPU-seconds.
What they are is said at the top of efficacy_arms.py. At the end the files of all arms are timed in alternation, one
image, one thread, as shares of the teacher's FP32 file; for every share the file of an arm that keeps to it (3 % are
allowed) and has the best validation accuracy is evaluated on the test images. What is finished is not repeated. Let
nothing else run: the teacher leaves the cache when others use it, and all shares shrink.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import efficacy_files as files
import torch
from commands import hardware
from efficacy_arms import ARMS
from efficacy_cpu import metered
from efficacy_training import BATCH, Recipe, Scale, accuracy, fit, network, of_steps, read, trained, views
from scipy.stats import t as student_t

REPO = Path(__file__).parents[2]
TEACHER = Recipe(optimizer="adamw", rate=1e-3, decay=0.05)
WITHIN = 1.03
"""A file keeps to a share if its latency is at most this times the share."""
SHOWN_TEST_IMAGES = 20
"""Of a class, for a sweep, which cannot do without a test folder; what it finds there is not used."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="train/CLASS/*, test/CLASS/*")
    parser.add_argument("--out", type=Path, default=Path("efficacy"), help="(default: efficacy)")
    parser.add_argument("--budget-s", type=float, default=3600, metavar="S", help="CPU-seconds an arm (default: 3600)")
    parser.add_argument("--seeds", default="0,1,2", help="(default: 0,1,2)")
    parser.add_argument("--arms", default=",".join(ARMS), help=f"(default: {','.join(ARMS)})")
    parser.add_argument("--shares", default="2,4,8,16", metavar="N", help="1/N of the latency (default: 2,4,8,16)")
    parser.add_argument("--model", default="alexnet", help="the teacher's: alexnet or resnet20 (default: alexnet)")
    parser.add_argument("--teacher-epochs", type=int, default=30, metavar="N", help="(default: 30)")
    parser.add_argument("--train-limit", type=int, default=10_000, metavar="N", help="images (default: 10000)")
    parser.add_argument("--val-images", type=int, default=2000, metavar="N", help="at most a fifth (default: 2000)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="trainings at a time, an arm (default: 2)")
    parser.add_argument("--retime-s", type=float, default=2.0, metavar="S", help="a file (default: 2)")
    parser.add_argument("--ours", default="", metavar="FLAGS", help="more flags of kd_prune.py, in one word")
    flags = parser.parse_args(argv)
    arms = flags.arms.split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"--arms {unknown[0]}: known are {','.join(ARMS)}.")
    if missing := [part for part in ("train", "test") if not (flags.data / part).is_dir()]:
        parser.error(f"--data {flags.data}: has no folder {missing[0]}/.")
    flags.shares = sorted((1 / float(word) for word in flags.shares.split(",")), reverse=True)
    flags.out, flags.data = flags.out.resolve(), flags.data.resolve()
    print(hardware(), flush=True)
    rows, teachers = [], []
    seeds = [int(word) for word in flags.seeds.split(",")]
    for seed in seeds:
        folder = flags.out / f"seed-{seed}"
        if seed == seeds[0]:
            prepare(folder, flags, seed)
        else:
            share_teacher(flags.out / f"seed-{seeds[0]}", folder)
        runs = [attend(arm, folder, flags, seed) for arm in arms]
        teachers.append(judge(runs, folder, flags, seed))
        rows += runs
    report(rows, arms, teachers, flags.out)
    return 0


def prepare(folder: Path, flags: argparse.Namespace, seed: int) -> None:
    """Split the images, train the teacher and write its file."""
    if (folder / "teacher.json").exists():
        return
    split(flags.data, folder / "images", flags.train_limit, flags.val_images, seed)
    torch.set_num_threads(flags.threads)
    torch.manual_seed(seed)
    train, val = (read(folder / "images" / part) for part in ("train", "val"))
    scale, classes, side = Scale(train), int(train.labels.max()) + 1, train.pixels.shape[-1]
    teacher, started = network(flags.model, classes, side), time.process_time()
    steps = flags.teacher_epochs * max(1, len(train.labels) // BATCH)
    fit(teacher, views(train, scale, seed), TEACHER, of_steps(steps))
    torch.save(teacher.state_dict(), folder / "teacher.pt")
    files.write(teacher, scale, folder / "teacher.onnx", train, int8=False)
    facts = {"model": flags.model, "classes": classes, "side": side, "cpu_s": time.process_time() - started}
    kept(folder / "teacher.json", facts | {"val": accuracy(teacher, scale, val)})
    assert trained(folder)


def share_teacher(first: Path, folder: Path) -> None:
    """Give the images and the teacher of the first seed to another seed.

    Raises:
        RuntimeError: if it has some of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("images", "teacher.pt", "teacher.onnx", "teacher.json"):
        if not (folder / name).is_symlink():
            if (folder / name).exists():
                raise RuntimeError(f"{folder} has a teacher of its own; take another --out.")
            (folder / name).symlink_to(first / name)


def split(data: Path, images: Path, train: int, val: int, seed: int) -> None:
    """Links to the images of train, val and (a few) test, an equal number a class."""
    chosen = random.Random(seed)
    classes = sorted(path.name for path in (data / "train").iterdir())
    for name in classes:
        found = sorted((data / "train" / name).iterdir())
        chosen.shuffle(found)
        count = min(val // len(classes), len(found) // 5)
        parts = {
            "val": found[:count],
            "train": found[count:][: train // len(classes)],
            "test": sorted((data / "test" / name).iterdir())[:SHOWN_TEST_IMAGES],
        }
        for part, paths in parts.items():
            (images / part / name).mkdir(parents=True, exist_ok=True)
            for path in paths:
                link = images / part / name / path.name
                if not link.is_symlink():
                    link.symlink_to(path)


def attend(arm: str, folder: Path, flags: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Run an arm if it has no result; returns it.

    Raises:
        RuntimeError: if it failed.
    """
    out, done = folder / arm, folder / f"{arm}.json"
    if not done.exists():
        shutil.rmtree(out, ignore_errors=True)  # of a run that was cut off, whose CPU-seconds nobody knows
        out.mkdir(parents=True)
        print(f"seed {seed}, arm {arm} ...", flush=True)
        job: dict[str, Any] = {"seed": seed, "folder": str(folder), "out": str(out), "budget_s": flags.budget_s}
        job |= {"threads": flags.threads, "ours": flags.ours.split(), "shares": flags.shares}
        job["retime_s"] = flags.retime_s
        kept(out / "job.json", job)
        words = [sys.executable, str(Path(__file__).with_name("efficacy_arms.py")), arm, str(out / "job.json")]
        environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        code, cpu_s, wall_s = metered(words, out / "log", environment)
        if code:
            raise RuntimeError(f"arm {arm} ended with code {code}; see {out / 'log'}.")
        points = json.loads((out / "points.json").read_text())
        kept(done, {"arm": arm, "seed": seed, "cpu_s": cpu_s, "wall_s": wall_s, "points": points})
        print(f"seed {seed}, arm {arm}: {len(points)} files, {cpu_s:.0f} CPU-seconds in {wall_s:.0f} s", flush=True)
    return dict(json.loads(done.read_text()))


def judge(runs: Sequence[dict[str, Any]], folder: Path, flags: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Fill in latency, size, ratio and test accuracy of the runs' points; returns the teacher's."""
    paths = sorted({Path(point["file"]) for run in runs for point in run["points"]})
    cache = folder / "measured.json"
    facts = json.loads(cache.read_text()) if cache.exists() else {}
    teacher = folder / "teacher.onnx"
    if set(facts) != {str(path) for path in (teacher, *paths)}:
        if (load := os.getloadavg()[0]) > 1.5:
            print(f"Load {load:.1f}: others compute, and the latencies below are not those of a quiet machine.")
        taken = files.times([teacher, *paths], flags.retime_s)
        facts = {
            str(path): {"latency_ms": ms, "ratio": ms / taken[0], "size": path.stat().st_size}
            for path, ms in zip([teacher, *paths], taken, strict=True)
        }
    chosen = {str(teacher)}
    for run in runs:
        run["points"] = [point | facts[point["file"]] for point in run["points"]]
        run["best"] = {share: best(run["points"], share) for share in flags.shares}
        chosen |= {point["file"] for point in run["best"].values() if point}
    test = read(flags.data / "test") if any("test" not in facts[name] for name in chosen) else None
    for name in sorted(chosen):
        if test is not None and "test" not in facts[name]:
            facts[name]["test"] = files.accuracy(Path(name), test)
    kept(cache, facts)
    for run in runs:
        for point in run["best"].values():
            if point:
                point["test"] = facts[point["file"]]["test"]
    return facts[str(teacher)] | json.loads((folder / "teacher.json").read_text()) | {"seed": seed}


def best(points: Sequence[dict[str, Any]], share: float) -> dict[str, Any] | None:
    """Of the files that keep to a share, the one with the best validation accuracy."""
    fitting = [point for point in points if point["ratio"] <= share * WITHIN]
    return max(fitting, key=lambda point: (point["val"], -point["ratio"]), default=None)


def report(runs: Sequence[dict[str, Any]], arms: Sequence[str], teachers: Sequence[Any], out: Path) -> None:
    """Print a table a share, and write results.jsonl."""
    lines = []
    for run in runs:
        for share, point in run["best"].items():
            lines.append(
                {"arm": run["arm"], "seed": run["seed"], "share": share, "cpu_s": run["cpu_s"], "point": point}
            )
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*teachers, *lines]))
    told = ", ".join(f"{100 * one['test']:.2f} % ({one['latency_ms']:.3f} ms)" for one in teachers)
    print(f"\nteacher's test accuracy and latency: {told}; {teachers[0]['size'] / 1e6:.2f} MB")
    for share in runs[0]["best"]:
        print(f"\n### 1/{round(1 / share)} of the teacher's latency\n")
        print("| arm | test % | SD | of the latency | MB | seeds | A - arm, points | 95 % interval |")
        print("|---|---|---|---|---|---|---|---|")
        at = {arm: {line["seed"]: line["point"] for line in lines if line["arm"] == arm and line["share"] == share
                    and line["point"]} for arm in arms}  # fmt: skip
        means = {arm: statistics.mean(p["test"] for p in found.values()) for arm, found in at.items() if found}
        for arm in arms:
            print(row(arm, at, means))
        whole = [arm for arm in means if len(at[arm]) == len(teachers)]
        print(f"\nbest: {max(whole, key=means.__getitem__) if whole else 'no arm has a file for every seed'}")
    print("\n| arm | CPU-seconds | seconds | files |\n|---|---|---|---|")
    for arm in arms:
        mine = [run for run in runs if run["arm"] == arm]
        used = [f"{statistics.mean(run[name] for run in mine):.0f}" for name in ("cpu_s", "wall_s")]
        print(f"| {arm} | {used[0]} | {used[1]} | {statistics.mean(len(run['points']) for run in mine):.0f} |")


def row(arm: str, at: dict[str, dict[int, Any]], means: dict[str, float]) -> str:
    """A line of a share's table."""
    found = at[arm]
    if not found:
        return f"| {arm} | none | | | | 0 | | |"
    tests = [100 * point["test"] for point in found.values()]
    deviation = f"{statistics.stdev(tests):.2f}" if len(tests) > 1 else ""
    ratio, size = (statistics.mean(point[name] for point in found.values()) for name in ("ratio", "size"))
    both = [100 * (at["A"][seed]["test"] - found[seed]["test"]) for seed in found if seed in at.get("A", {})]
    shown = "" if arm == "A" or not both else f"{statistics.mean(both):+.2f}"
    interval = "" if arm == "A" or len(both) < 2 else "{:+.2f} to {:+.2f}".format(*paired(both))
    return (
        f"| {arm} | {100 * means[arm]:.2f} | {deviation} | {ratio:.3f} | {size / 1e6:.2f} | {len(found)}"
        f" | {shown} | {interval} |"
    )


def paired(differences: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of two or more paired differences."""
    count, mean = len(differences), statistics.mean(differences)
    half = float(student_t.ppf(0.975, count - 1)) * statistics.stdev(differences) / count**0.5
    return mean - half, mean + half


def kept(path: Path, facts: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(facts, indent=1))
    partial.rename(path)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except RuntimeError as error:
        raise SystemExit(str(error)) from error
