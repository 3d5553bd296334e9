import contextlib
import io
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import mlflow
import pandas as pd
import pytest

from analysis.reading.runs import read_runs
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
    assert ablation.config_from(flags).search.base.teacher.teacher_epochs == 1


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


class Studied(NamedTuple):
    """The study `onnx` with two seeds, then `distillation`: the grid of `ablation.py --preset distillation`."""

    out: Path
    shown: tuple[str, str]
    """By either."""
    before: dict[Path, int]
    """Records in the store, with their times, before the second."""


@pytest.fixture(scope="module")
def studied(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Studied:
    """The first as a command of its own, the second in this process."""
    folder = tmp_path_factory.mktemp("studies")
    out = folder / "runs"
    words = [*TINY.split(), "--seeds", "2", "--latency-seconds", "0.1", "--cpus", "2"]
    words += ["--latency-max-attempts", "1"]
    words += ["--out", str(out), "--data-dir", str(folder / "data")]
    done = subprocess.run([sys.executable, str(SCRIPT), "onnx", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    before = stored(out)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert studies.main(["distillation", *words]) == 0
    return Studied(out, (done.stdout, shown.getvalue()), before)


def stored(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("store/*/*/record.json")}


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_is_one_command_and_another_one_trains_nothing_again(studied: Studied) -> None:
    assert studied.before == stored(studied.out)
    (folder,) = studied.out.glob("sweeps/*/studies")
    onnx, distillation = (pd.read_csv(folder / f"{name}.csv") for name in ("onnxruntime", "distillation"))
    assert onnx["Acc %"].iloc[0] == onnx["Acc %"].iloc[1] == distillation["Acc %"].iloc[0]
    assert (onnx["Test set s"] > 0).all()
    assert onnx["Verdict"].str.fullmatch(r"clean|1 of 1 [A-Za-z0-9 /]+").all()
    assert (folder / "distillation.png").stat().st_size > 10_000
    assert shlex.join(["python", "sweeps/ablation.py", *STUDIES["distillation"].flags.split()]) in studied.shown[1]


@pytest.mark.ray
@pytest.mark.slow
def test_an_ablation_trains_every_cell_with_every_seed_and_one_teacher(studied: Studied) -> None:
    """Two cells with two seeds each."""
    out = studied.out
    (sweep,) = (out / "sweeps").iterdir()
    table = pd.read_csv(sweep / "ablation" / "ablation.csv")
    assert table.set_index("kd_loss")["n"].to_dict() == {"kd": 2, "none": 2}
    assert len(list(out.glob("store/teacher/*/record.json"))) == 1
    assert len(list(out.glob("store/student/*/record.json"))) == 4
    runs = read_runs(f"sqlite:///{out / 'mlflow.db'}", sweep.name)
    trials = runs.frame[runs.frame["stage"] == "candidate"]
    assert sorted(zip(trials["kd_loss"], trials["seed"], strict=True)) == [
        ("kd", 0), ("kd", 1), ("none", 0), ("none", 1)
    ]  # fmt: skip
    kd = trials[trials["kd_loss"] == "kd"]["test_accuracy"]
    assert table.set_index("kd_loss").loc["kd", "test_accuracy_mean"] == pytest.approx(kd.mean())
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (parent,) = client.search_runs(list(trials["experiment_id"].unique()), "tags.kind = 'sweep'")
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"ablation.csv", "ablation.md", "ablation.png", "sweep.json"} <= names
    assert all("Ablation:" in shown for shown in studied.shown)
