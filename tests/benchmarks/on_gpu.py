"""As much proof as one lease of a GPU gives: sections in order of worth, until time is over.

    python tests/benchmarks/on_gpu.py                                # 570 s in all
    python tests/benchmarks/on_gpu.py --only env tests --seconds 200
    python tests/benchmarks/on_gpu.py --cifar cifar10                # folder of {train,test}/CLASS/*; digits without it
    python tests/benchmarks/on_gpu.py --small                        # every section in the smallest form that runs

Needs torch, torchvision, onnx, onnxruntime, scikit-learn and pytest; torch-pruning and onnxscript for pruned students.
What is missing is said first, and the rest runs. Each section is a process of its own, and one that fails or is cut off
takes none of the others along. Every result is one JSON object on a line, in $OUT/on_gpu.jsonl, too.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # the repository need not be installed

import on_gpu_sections as sections  # noqa: E402 - found by the line above
from on_gpu_sections import tell  # noqa: E402 - likewise

SECTIONS = {
    "env": (sections.environment, 40),
    "tests": (sections.gpu_tests, 100),
    "same": (sections.same_as_cpu, 80),
    "waits": (sections.waits, 60),
    "throughput": (sections.throughput, 150),
    "packing": (sections.packing, 90),
    "latency": (sections.latency, 90),
    "teacher": (sections.teacher, 200),
}
"""In order of worth, and the seconds after which one is cut off."""
NEEDED = ("torch", "torchvision", "onnx", "onnxruntime", "sklearn", "pytest", "torch_pruning", "onnxscript")
LEAST_S = 10  # a section takes that to import torch


def run_apart(words: Sequence[object], limit_s: float) -> tuple[int | str, float]:
    """Run a Python script in a process group of its own; returns its exit code, or `cut off`, and the seconds."""
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, start_new_session=True)
    try:
        return child.wait(limit_s), time.monotonic() - started
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return "cut off", time.monotonic() - started


def main(words: list[str]) -> int:
    """The command line; returns how many sections failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=570.0, help="in all")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10's images")
    parser.add_argument("--small", action="store_true", help="the smallest form that runs")
    parser.add_argument("--section", choices=tuple(SECTIONS), help=argparse.SUPPRESS)
    flags = parser.parse_args(words)
    if flags.section:
        SECTIONS[flags.section][0](flags)
        return 0
    tell("missing", packages=[name for name in NEEDED if importlib.util.find_spec(name) is None])
    until, failed = time.monotonic() + flags.seconds, 0
    for name in flags.only:
        left = until - time.monotonic()
        if left < LEAST_S:
            tell(name, skipped="time is over")
            continue
        more = [*(["--cifar", flags.cifar] if flags.cifar else []), *(["--small"] if flags.small else [])]
        code, seconds = run_apart([__file__, "--section", name, *more], min(left, SECTIONS[name][1]))
        failed += code != 0
        tell(name, exit_code=code, seconds=round(seconds, 1))
    return failed


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
