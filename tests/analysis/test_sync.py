import dataclasses
import fcntl
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from analysis.__main__ import main
from trainables.layout import database_uri
from trainables.records.encoding import to_json
from trainables.records.trial import TrialRecord, read_trial
from trainables.tracking.deliveries import note_where, open_noted


@pytest.fixture
def away() -> str:
    """The address of a tracking server that is not there."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def waiting(out: Path, away: str, tmp_path: Path) -> Path:
    """A sweep of two trials and a teacher that MLflow was away for from its start; beside it a fresh database."""
    shutil.copy(out / "mlflow.db", tmp_path / "mlflow.db")
    folder = tmp_path / "sweeps" / "dark"
    for number, name in ((None, "teacher"), (0, "trials/00000"), (1, "trials/00001")):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.onnx").write_text(name)
        record = TrialRecord(
            key=f"dark/{Path(name).name}",
            trial_number=number,
            stage="candidate" if number is not None else "teacher",
            status="finished",
            reason="",
            params={"alpha": 0.9},
            metrics={
                "val_accuracy": 0.75,
                "latency_p50_ms": 1.0,
                "reference_latency_p50_ms": 2.0,
                "size_bytes": 1_000_000,
            },
            tags={},
            curve=(),
            files=("model.onnx",),
            started=1.0,
            ended=2.0,
        )
        (folder / name / "record.json").write_text(to_json(record))
    sweep = {"teacher": {"size_bytes": 4_000_000}, "config": {"rates": {"latency_points": 2.0, "size_points": 0.5}}}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    note_where(folder, away, experiment="dark", sweep="dark", sweep_id="dark-1")
    return tmp_path


def test_what_waits_is_delivered_once_when_mlflow_is_back(
    waiting: Path, away: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sync", "--out", str(waiting), "--tracking-uri", away]) == 1
    assert "dark: 0 of 3 records are in MLflow; 3 wait: " in capsys.readouterr().out
    uri = f"sqlite:///{waiting / 'mlflow.db'}"
    for _ in range(2):
        assert main(["sync", "--out", str(waiting), "--name", "dark", "--tracking-uri", uri]) == 0
        assert capsys.readouterr().out == "dark: 3 of 3 records are in MLflow\n"
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("dark")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'trial'")
    assert sorted(run.data.tags["key"] for run in runs) == ["dark/00000", "dark/00001", "dark/teacher"]
    assert {run.data.metrics["score"] for run in runs} == {75 - 2 * -1 - 0.5 * -2}
    assert len(client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")) == 1


def test_cells_of_runtimes_wait_like_trials(waiting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = waiting / "sweeps" / "dark" / "runtimes" / "teacher-eager_cpu"
    cell.mkdir(parents=True)
    teacher = read_trial(waiting / "sweeps" / "dark" / "teacher")
    record = dataclasses.replace(
        teacher,
        key="dark/runtimes/t",
        stage="runtime",
        metrics={"test_accuracy": 0.5},
        tags={"kind": "runtime"},
        files=(),
    )
    (cell / "record.json").write_text(to_json(record))
    uri = f"sqlite:///{waiting / 'mlflow.db'}"
    assert main(["sync", "--out", str(waiting), "--tracking-uri", uri]) == 0
    assert capsys.readouterr().out == "dark: 4 of 4 records are in MLflow\n"
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("dark")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.kind = 'runtime'")
    assert (run.data.metrics["test_accuracy"], "score" in run.data.metrics) == (0.5, False)


def test_a_running_sweep_delivers_itself(waiting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (waiting / "sweeps" / "dark" / "driver.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["sync", "--out", str(waiting)]) == 2
    assert "--name dark: its sweep is running" in capsys.readouterr().err


def test_no_password_is_written_down(tmp_path: Path) -> None:
    uri = "postgresql://me:se@cret@db:5432/mlflow"
    note_where(tmp_path, uri, experiment="e", sweep="s", sweep_id="i")
    assert "cret" not in (tmp_path / "tracking.json").read_text()
    with pytest.raises(ValueError, match=r"postgresql://me:\*\*\*@db:5432/mlflow; if that store is yours, name it"):
        open_noted(tmp_path, None)


def test_a_folder_from_elsewhere_does_not_choose_who_gets_the_credentials(
    waiting: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copied folder names a server of somebody else's: nothing connects to it, with the token or without."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        place = waiting / "sweeps" / "dark"
        theirs = f"http://127.0.0.1:{server.getsockname()[1]}"
        note_where(place, theirs, experiment="dark", sweep="dark", sweep_id="dark-1")
        assert main(["sync", "--out", str(waiting)]) == 2
        with pytest.raises(TimeoutError):
            server.accept()
    assert f"dark was delivered to {theirs}; if that store is yours" in capsys.readouterr().err


def test_a_sweep_that_was_moved_is_delivered_where_it_lies_now(
    waiting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = waiting / "sweeps" / "dark"
    note_where(place, database_uri(waiting), experiment="dark", sweep="dark", sweep_id="dark-1")
    assert main(["sync", "--out", str(waiting)]) == 0
    moved = tmp_path.with_name(f"{tmp_path.name}-moved to %3F, really? #1")
    waiting.rename(moved)
    (moved / "sweeps" / "dark" / "trials" / "00001" / "delivered.json").unlink()
    (moved / "sweeps" / "dark" / "trials" / "00001" / "model.onnx").write_text("new")
    # another process, as after a real move: MLflow remembers places by the ids of runs
    again = subprocess.run([sys.executable, "-m", "analysis", "sync", "--out", moved], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert not waiting.exists()
    assert "new" in [path.read_text() for path in moved.glob("artifacts/*/artifacts/model.onnx")]
    locations = [found.artifact_location for found in mlflow.MlflowClient(database_uri(moved)).search_experiments()]
    assert locations.count((moved / "artifacts").as_uri()) == 2
