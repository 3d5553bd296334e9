"""efficacy.py in its smallest form that really runs, and its choices by hand."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parent


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, dark and bright, noisy."""
    data = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for part, count in (("train", 160), ("test", 20)):
        for name, middle in (("dark", 90), ("light", 160)):
            (data / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.normal(middle, 40, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(data / part / name / f"{number:03}.png")
    return data


def benchmark(images: Path, out: Path, *words: str) -> list[dict[str, Any]]:
    command = [
        sys.executable, str(FOLDER / "efficacy.py"), "--data", str(images), "--out", str(out), "--seeds", "0",
        "--model", "alexnet_small", "--teacher-epochs", "10", "--threads", "1", "--retime-s", "0.1", *words,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    logs = "\n".join(path.read_text() for path in out.glob("seed-0/*/log"))
    assert result.returncode == 0, result.stderr + logs
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_arms_that_take_seconds_run(module: Any, images: Path, tmp_path: Path) -> None:
    teacher, *rows = benchmark(images, tmp_path, "--arms", "B,C", "--budget-s", "15", "--shares", "1,6")
    assert teacher["test"] > 0.9
    assert [(row["arm"], row["share"]) for row in rows] == [("B", 1), ("B", 1 / 6), ("C", 1), ("C", 1 / 6)]
    for row in rows:
        assert 0 < row["cpu_s"] < 60
        if row["share"] == 1:
            assert row["point"]["test"] > 0.9 and row["point"]["ratio"] <= 1.03
    folder = tmp_path / "seed-0"
    for arm in "BC":  # what their INT8 teacher is too slow for they have trained
        assert int(re.search(r"share 0.16\d*: (\d+) steps in", (folder / arm / "log").read_text())[1]) > 0
    asked = json.loads((folder / "B" / "job.json").read_text()) | {"folder": folder, "out": tmp_path}
    points = module("efficacy_arms").quantised(module("efficacy_bench").Job(**asked))
    assert [Path(point["file"]).name for point in points] == ["teacher.fp32.onnx", "teacher.int8.onnx"]
    assert all(point["val"] == pytest.approx(teacher["val"], abs=0.1) for point in points)


def test_an_arm_that_has_ended_is_not_run_again(module: Any, tmp_path: Path) -> None:
    (tmp_path / "B.json").write_text('{"arm": "B", "points": []}')
    assert module("efficacy").attend("B", tmp_path, None, 0) == {"arm": "B", "points": []}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_ours_and_tune_run_and_two_train_at_a_time(images: Path, tmp_path: Path) -> None:
    flags = ("--threads", "2", "--shares", "2")
    benchmark(images, tmp_path, *flags, "--arms", "C", "--budget-s", "40")
    ours = "--preset quick --latency-seconds 0.3"
    teacher, *rows = benchmark(images, tmp_path, *flags, "--arms", "A,C,E", "--budget-s", "300", "--ours", ours)
    assert [row["arm"] for row in rows] == ["A", "C", "E"]
    assert rows[1]["cpu_s"] < 100  # C has not been run again, with the larger budget
    assert all(row["point"]["test"] > 0.8 for row in rows)
    (record,) = tmp_path.glob("seed-0/A/runs/sweeps/ours/teacher/record.json")
    assert json.loads(record.read_text())["metrics"]["val_accuracy"] == pytest.approx(teacher["val"], abs=0.02)


def test_the_best_by_validation_that_is_fast_enough_counts(module: Any) -> None:
    points = [
        {"ratio": 0.51, "val": 0.7, "n": 0},
        {"ratio": 0.3, "val": 0.6, "n": 1},
        {"ratio": 0.52, "val": 0.9, "n": 2},
    ]
    best = module("efficacy").best
    assert best(points, 0.5)["n"] == 0
    assert best(points, 0.3)["n"] == 1
    assert best(points, 0.25) is None


def test_paired_differences_have_students_interval(module: Any) -> None:
    low, high = module("efficacy").paired([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)  # t = 4.3027, SD 1, n 3


def test_train_and_val_share_no_image(module: Any, images: Path, tmp_path: Path) -> None:
    module("efficacy").split(images, tmp_path, 100, 40, 1)
    names = {part: {path.resolve() for path in tmp_path.glob(f"{part}/*/*")} for part in ("train", "val")}
    assert len(names["train"]) == 100 and len(names["val"]) == 40
    assert not names["train"] & names["val"]


def test_other_seeds_have_the_teacher_of_the_first(module: Any, tmp_path: Path) -> None:
    efficacy, first, other = module("efficacy"), tmp_path / "seed-0", tmp_path / "seed-1"
    first.mkdir()
    (first / "teacher.json").write_text("{}")
    for _ in range(2):
        efficacy.share_teacher(first, other)
    assert (other / "teacher.json").read_text() == "{}"
    with pytest.raises(RuntimeError, match="take another --out"):
        efficacy.share_teacher(other, first)


def test_a_child_counts_and_so_does_its_child(module: Any, tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 1: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    code, cpu_s, _ = module("efficacy_cpu").metered([sys.executable, "-c", parent], tmp_path / "log", {})
    assert code == 0
    assert 1.0 <= cpu_s < 2.0


def test_rates_of_the_schedules(module: Any) -> None:
    training = module("efficacy_training")
    steps = training.Recipe(rate=1.0, schedule="steps")
    assert [training.rate_at(steps, spent) for spent in (0, 0.7, 0.9)] == pytest.approx([1, 0.1, 0.01])
    cycle = training.Recipe(rate=1.0)
    assert training.rate_at(cycle, 0.15) == pytest.approx(1) and training.rate_at(cycle, 1.0) == pytest.approx(0)


def test_distillation_from_itself_is_no_loss(module: Any) -> None:
    torch, training = module("torch"), module("efficacy_training")
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    recipe = training.Recipe(alpha=1.0, temperature=3.0)
    assert float(training.loss(recipe, logits, labels, logits)) == pytest.approx(0, abs=1e-6)
    assert float(training.loss(training.Recipe(), logits, labels, logits)) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, labels))
    )


def test_bad_flags_are_named(module: Any, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    efficacy = module("efficacy")
    wrong = {("--arms", "A,Z"): "--arms Z: known are A,B,C,D,E", ("--data", "/nowhere"): "has no folder train"}
    for words, said in wrong.items():
        with pytest.raises(SystemExit, match="2"):
            efficacy.main(["--data", str(images), *words])
        assert said in capsys.readouterr().err
