"""Tests on a stand-in for a CUDA device: see `null_device.py` for what it shows and what it cannot.

It must be loaded before torch, so each group of tests is a process of its own: the files in `inside`, and the tests
marked `gpu`. In a shell:

    eval "$(python tests/nullgpu/make_device.py /tmp/nullgpu)"
    PYTHONPATH=tests/nullgpu:tests/nullgpu/inside python -m pytest tests/nullgpu/inside/steps.py
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from make_device import CannotBuildError, make

HERE = Path(__file__).parent
TESTS = HERE.parent


@pytest.fixture(scope="session")
def on_stand_in(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Environment variables of a process that runs on the stand-in."""
    try:
        settings = make(tmp_path_factory.mktemp("nullgpu"))
    except CannotBuildError as error:
        pytest.skip(str(error))
    path = (TESTS.parent, HERE, HERE / "inside", os.environ.get("PYTHONPATH", ""))
    return os.environ | settings | {"PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}


def run(environment: Mapping[str, str], *words: str | Path) -> tuple[int, int]:
    """Run pytest on the stand-in; returns how many tests passed and were skipped, and fails with what failed there."""
    # native tracebacks: to print a tensor of the device takes forever where no kernel has written it
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=native",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        *map(str, words),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    last = done.stdout.strip().splitlines()[-1]
    found = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last)}
    return found.get("passed", 0), found.get("skipped", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "least"),
    [("steps faults", 56), ("values", 4), ("streams", 2), ("graphs", 6)],
    ids=["steps", "values", "streams", "graphs"],
)
def test_the_gpu_path_on_the_stand_in(on_stand_in: Mapping[str, str], files: str, least: int) -> None:
    passed, skipped = run(on_stand_in, *(HERE / "inside" / f"{file}.py" for file in files.split()))
    assert passed >= least and not skipped


@pytest.mark.slow
def test_the_tests_for_a_gpu_pass_on_the_stand_in(on_stand_in: Mapping[str, str]) -> None:
    """All but those of runtimes and their latency, which need cuDNN, TorchScript and ONNX Runtime on a real GPU."""
    stages = TESTS / "trainables" / "stages"
    files = [path for path in sorted(stages.rglob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")]
    files = [path for path in files if path.parent != stages / "measuring"]
    passed, skipped = run(on_stand_in, "-p", "always_computing", "-m", "gpu", *files)
    assert passed >= 20 and not skipped


@pytest.mark.slow
@pytest.mark.parametrize("sections", ["env waits", pytest.param("", id="all", marks=pytest.mark.nightly)])
def test_the_benchmark_of_a_gpu_starts_and_reports(
    on_stand_in: Mapping[str, str], tmp_path: Path, sections: str
) -> None:
    command = [sys.executable, str(TESTS / "benchmarks" / "on_gpu.py"), "--small"]
    command += ["--only", *sections.split()] if sections else []
    environment = {**on_stand_in, "OUT": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in (tmp_path / "on_gpu.jsonl").read_text().splitlines()]
    codes = {row["section"]: row["exit_code"] for row in rows if row.keys() == {"section", "exit_code", "seconds"}}
    assert len(codes) == (len(sections.split()) or 8)
    assert set(codes.values()) == {0}, done.stdout + done.stderr
    assert {row["section"] for row in rows if len(row) > 3} >= {*codes}, "each reports a result"
