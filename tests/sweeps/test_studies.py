import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sweeps import ablation, studies
from sweeps.studies import STUDIES

SCRIPT = Path(studies.__file__)
TINY = "--dataset digits --train-limit 200 --teacher-epochs 1 --student-epochs 1 --recovery-epochs 1"


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_is_a_grid_that_can_be_made(study: str) -> None:
    _, flags = ablation.parse(STUDIES[study].flags.split())
    config = ablation.config_from(flags)
    assert config.search.trials == {"pruning": 3}.get(study, 2)
    assert config.search.base.data.dataset == "cifar10"
    if study == "pruning":
        told = config.search.base.flat()
        assert (told["temperature"], told["alpha"], told["label_smoothing"]) == (4, 0.9, 0.05)
        assert (told["image_size"], told["crop"], told["student_model"]) == (224, "resized", "mobilenet_v3_small")


def test_typed_flags_win_over_a_studys_own() -> None:
    _, flags = ablation.parse([*STUDIES["onnx"].flags.split(), *TINY.split()])
    assert ablation.config_from(flags).base.teacher.teacher_epochs == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", ["STUDY"]),
        ("onyx", ["'onyx'", "torchscript"]),
        ("onnx --teacher-epochs -1", ["--teacher-epochs -1"]),
        ("onnx --preset kd-grid", ["--preset", "sweeps/ablation.py"]),
        ("onnx --storage=s3://b/runs", ["--storage=s3://b/runs", "on this machine"]),
        ("amp --train-precision amp", ["--train-precision amp", "compares fp32, amp"]),
        ("onnx --teecher-epochs 3", ["--teecher-epochs", "--teacher-epochs"]),
    ],
)
def test_bad_input_is_answered_on_one_line(
    words: str, named: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        studies.main([*words.split(), *(["--out", str(tmp_path / "runs")] if words else [])])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.count("\n") == 1
    assert all(part in error for part in named), error
    assert not (tmp_path / "runs").exists()


def test_a_table_of_cells_that_mlflow_has_not_got_is_told() -> None:
    with pytest.raises(ValueError, match="MLflow has no cells of runtimes yet"):
        studies._of_the_teacher(pd.DataFrame())


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_is_one_command_and_another_one_trains_nothing_again(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    words = [*TINY.split(), "--latency-seconds", "0.1", "--out", str(out), "--data-dir", str(tmp_path / "data")]
    made: dict[Path, int] = {}
    for study in ("onnx", "distillation"):
        made = {path: path.stat().st_mtime_ns for path in out.glob("store/*/*/record.json")}
        command = [sys.executable, str(SCRIPT), study, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(out.glob("store/student/*/record.json"))) == 2
    assert made == {path: path.stat().st_mtime_ns for path in out.glob("store/*/*/record.json")}
    (folder,) = out.glob("sweeps/*/studies")
    onnx, distillation = (pd.read_csv(folder / f"{name}.csv") for name in ("onnxruntime", "distillation"))
    assert onnx["Acc %"].iloc[0] == onnx["Acc %"].iloc[1] == distillation["Acc %"].iloc[0]
    assert (onnx["Test set s"] > 0).all()
    assert set(onnx["Verdict"].str.split(" ").str[-1]) <= {"clean", "noisy", "contaminated"}
    assert (folder / "distillation.png").stat().st_size > 10_000
    assert shlex.join(["python", "sweeps/ablation.py", *STUDIES["distillation"].flags.split()]) in done.stdout
