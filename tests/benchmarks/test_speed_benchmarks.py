"""The speed benchmarks, in the smallest form that really runs, so that they work when somebody has a GPU."""

import argparse
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
REPO = FOLDER.parents[1]
ONLY_TORCH = """
import sys, runpy
from importlib.machinery import PathFinder
OURS = {"ray", "optuna", "mlflow", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "torch_pruning", "pandas", "moocore",
        "plotly", "matplotlib", "rich", "sklearn", "scipy", "sqlalchemy"}
class Bare(PathFinder):  # a machine on which only torch and torchvision are installed
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in OURS else super().find_spec(name, path, target)
sys.meta_path = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

pytestmark = pytest.mark.slow


def lines(name: str, *words: str, before: tuple[str, ...] = ()) -> list[str]:
    command = [sys.executable, *before, str(FOLDER / name), *words]
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()


@pytest.mark.nightly
def test_train_throughput_runs_where_only_torch_and_torchvision_are_installed() -> None:
    asked = '{"batch_size": 4, "steps": 2, "device": "cpu", "size": 32, "model": "mobilenet_v3_small"}'
    (rate,) = lines("train_throughput.py", "--run", "ours-first", asked, before=("-c", ONLY_TORCH))
    assert float(rate) > 0


@pytest.mark.nightly
def test_train_throughput_compares_with_the_notebook() -> None:
    flags = ("--device", "cpu", "--models", "resnet18", "--sizes", "32", "--arms", "notebook", "bare")
    rows = lines("train_throughput.py", *flags, "--batch-size", "2", "--steps", "1", "--repeats", "1")[2:]
    rates = [float(re.search(r"([0-9]+) images/s", row)[1]) for row in rows]
    assert len(rates) == 2
    assert float(re.search(r"([0-9.]+) x notebook", rows[1])[1]) == pytest.approx(rates[1] / rates[0], rel=0.3)


def test_an_arm_that_fails_leaves_the_others_their_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    benchmark = importlib.import_module("train_throughput")

    def measured(flags: argparse.Namespace, arm: str, model: str, size: int) -> float:
        if arm == "ours-compile":
            raise RuntimeError("torch.compile needs a C++ compiler")
        return {"notebook": 100.0}.get(arm, 700.0)

    monkeypatch.setattr(benchmark, "measured", measured)
    benchmark.compare(argparse.Namespace(device="cuda", arms=[], repeats=2), "resnet18", 224)
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.endswith("ours-compile  failed: torch.compile needs a C++ compiler")
    assert [row.split()[4] for row in rows] == ["notebook", "notebook-amp", "ours"]
    assert "7.00 x notebook" in rows[2]


@pytest.mark.nightly
def test_packing_prints_its_table_and_what_auto_takes(tmp_path: Path) -> None:
    rows = lines(
        "packing.py", "--device", "cpu", "--preset", "quick", "--trials", "1", "--seconds", "0.2",
        "--train-limit", "100", "--data-dir", str(tmp_path),
    )  # fmt: skip
    assert rows[-1].startswith("auto takes 1: ")
    assert rows[-2].split()[0] == "1"


@pytest.mark.nightly
def test_teacher_and_students_run_with_little_more_than_torch(tmp_path: Path) -> None:
    bare = ONLY_TORCH
    for name in ("torch_pruning", "sklearn", "scipy"):  # the first removes channels, the others have the digits
        bare = bare.replace(f'"{name}",', "")
    rows = lines(
        "teacher_cifar10.py", "--device", "cpu", "--dataset", "digits", "--steps", "2", "--batch-size", "8",
        "--data-dir", str(tmp_path), before=("-c", bare),
    )  # fmt: skip
    assert len(rows) == 6
    assert all(re.search(r"test accuracy +[0-9.]+ %", row) for row in rows[1:])


@pytest.mark.nightly
def test_scale_takes_its_trials_to_a_front_in_mlflow(tmp_path: Path) -> None:
    heading, row = lines("scale.py", "--trials", "12", "--out", str(tmp_path / "scale"))
    assert heading.split()[:7] == ["trials", "MB", "propose", "stopper", "record", "tell", "deliver"]
    assert row.split()[0] == "12" and all(float(number) > 0 for number in row.split()[1:])


@pytest.mark.nightly
@pytest.mark.ray
def test_true_latency_times_every_file_of_a_sweep_again(tmp_path: Path) -> None:
    words = [sys.executable, str(FOLDER / "true_latency.py"), "--out", str(tmp_path / "true"), "--times", "1"]
    small = "--trials 2 --teacher-epochs 1 --student-epochs 1 --recovery-epochs 1 --latency-seconds 0.2"
    done = subprocess.run([*words, *small.split()], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: this machine is busy
    assert re.search(r"of 2 not clean; largest difference [0-9.]+%", done.stdout), done.stdout


@pytest.mark.parametrize("model", ["alexnet_small", "resnet8"])
def test_fused_students_have_the_gradients_of_the_same_alone(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    fused = importlib.import_module("fused")
    job = fused.Job(model=model, batch_size=8, steps=1, device="cpu")
    fused.check(job)
    real = fused.mapped_gradients
    monkeypatch.setattr(
        fused,
        "mapped_gradients",
        lambda network: lambda *given: {name: 1.01 * value for name, value in real(network)(*given).items()},
    )
    with pytest.raises(AssertionError, match="not close"):
        fused.check(job)


def test_fused_says_what_each_way_trains_in_a_second() -> None:
    rows = lines("fused.py", "--models", "alexnet_small", "--counts", "2", "--steps", "1", "--rounds", "1")
    rates = [float(cell.split()[0]) for cell in rows[-1].split("|")[3:6]]
    assert all(rate > 0 for rate in rates)
    assert float(rows[-1].split("|")[6]) == pytest.approx(rates[2] / max(rates[:2]), rel=0.02)
