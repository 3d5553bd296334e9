"""A whole sweep on real images through the real command: Ray, Optuna's journal, MLflow on SQLite, ONNX Runtime."""

import base64
import html
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import onnxruntime
import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from PIL import Image
from sklearn.datasets import load_digits

from analysis.findings.front import front_members
from analysis.plots.page import unpacked
from analysis.reading.runs import Runs, read_runs
from sweeps import kd_prune, runtimes, sweep
from sweeps.search.sampling.searcher import RULED_OUT, dropped
from sweeps.search.space import tidy
from tests.sweeps.standing_still import used_while_measuring
from trainables.records.encoding import to_json
from trainables.records.trial import read_trial

REPO = Path(__file__).parents[2]
TRIALS = 4
ARMS = ("champion", "no_distillation", "from_scratch", "not_pruned")

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scikit-learn's digits as an image folder, 100 images a class for training, 20 for test."""
    root = tmp_path_factory.mktemp("photos")
    digits = load_digits()
    for digit in range(10):
        of_class = digits.images[digits.target == digit]
        for split, part in (("train", of_class[:100]), ("test", of_class[100:120])):
            folder = root / split / str(digit)
            folder.mkdir(parents=True)
            for number, pixels in enumerate(part):
                image = Image.fromarray((pixels * 15.9).astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR)
                image.save(folder / f"{number:03}.png")
    return root


def flags(photos: Path, out: Path, *more: str) -> list[str]:
    """Of a small sweep, in whose space every champion has a teacher and is pruned."""
    settings = "--preset quick --teacher-epochs 3 --student-epochs 2 --recovery-epochs 1 --latency-seconds 0.2"
    settings += " --recovery-budget epochs --latency-max-attempts 1"  # other tests disturb them all
    space = "--alpha 0.5:1 --pruning-ratio 0.2:0.7"
    where = ["--out", str(out), "--data-dir", str(out.parent / "data"), "--dataset", f"folder:{photos}", "--no-flip"]
    return [*settings.split(), *space.split(), *where, *more]


def command(photos: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, str(REPO / "sweeps" / "kd_prune.py"), *flags(photos, out, *more)]


def in_this_process(photos: Path, out: Path, *more: str) -> int:
    """The exit code of the command on the Ray that is there, which has two cores."""
    return kd_prune.main([*flags(photos, out, "--cpus", "2"), *more])


def study_of(out: Path) -> optuna.Study:
    (journal,) = out.glob("sweeps/*/study.journal")
    return optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal))))


def children(out: Path) -> pd.DataFrame:
    mlflow.set_tracking_uri(f"sqlite:///{out / 'mlflow.db'}")
    return mlflow.search_runs(search_all_experiments=True, filter_string="tags.kind = 'trial'")


@pytest.fixture(scope="module")
def out(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished sweep. Its terminal output is in `OUT/terminal.txt`, and in `OUT/standing_still.json` what it used."""
    out = tmp_path_factory.mktemp("sweep") / "runs"
    said = out.parent / "terminal.txt"
    with said.open("w") as terminal:
        sweep = subprocess.Popen(command(photos, out, "--trials", str(TRIALS)), stdout=terminal, stderr=terminal)
        used = used_while_measuring(sweep, out / "leases" / "cpu.room", timeout_s=500)
    assert sweep.returncode == 0, said.read_text()
    said.rename(out / "terminal.txt")
    (out / "standing_still.json").write_text(json.dumps(used))
    yield out
    mlflow.set_tracking_uri("")


def test_nothing_of_a_sweep_computes_while_a_trial_measures(out: Path) -> None:
    """Cores that its processes used then: 0.5 and more in single measurements before trials held the lock throughout.

    On an idle machine all of them take less than 0.02 (tests/benchmarks/LOG.md); on a busy one waking up costs more.
    """
    used = json.loads((out / "standing_still.json").read_text())
    assert used["measurements"] > TRIALS
    ours = {name: cores for name, cores in used["cores"].items() if name == "driver" or name.startswith("trial")}
    assert ours.keys() >= {"driver", "trial"}
    assert all(cores < 0.03 for cores in ours.values()), used
    assert sum(used["cores"].values()) < 0.2, used


def test_every_trial_is_in_optuna_and_in_mlflow_with_the_same_numbers(out: Path) -> None:
    runs = children(out)
    trials = {trial.number: trial for trial in study_of(out).trials if trial.state.name == "COMPLETE"}
    assert len(trials) == TRIALS
    assert len(runs) == TRIALS + 1  # and the teacher
    for _, run in runs[runs["tags.stage"] == "candidate"].iterrows():
        trial = trials[int(run["tags.trial_number"])]
        told = [run[f"metrics.{name}"] for name in ("val_accuracy", "latency_p50_ms", "size_bytes")]
        assert told == trial.values
        assert run["metrics.score"] == pytest.approx(trial.user_attrs["score"])
        assert float(run["params.alpha"]) == tidy(trial.params)["alpha"]
        assert run["params.student_model"] == trial.params["student_model"]
        assert run["params.precision"] == trial.params["precision"]
        assert run["metrics.latency_p50_ms"] > 0
        assert run["status"] == "FINISHED"


def test_the_sweep_leaves_the_file_that_asks_for_it_again(out: Path) -> None:
    (file,) = out.glob("sweeps/*/sweep.toml")
    config = kd_prune._config(kd_prune._parse(["--config", str(file)])[1])
    assert config.name == file.parent.name
    stored = json.loads((file.parent / "identity.json").read_text())["settings"]
    assert json.loads(to_json(config.identity())) == {part: stored[part] for part in stored if part != "images"}


def test_a_candidate_has_one_spelling_in_record_recipe_file_and_mlflow(out: Path) -> None:
    runs = children(out)
    folders = sorted(path.parent for path in out.glob("sweeps/*/trials/*/record.json"))
    assert len(folders) == TRIALS
    for folder in folders:
        params = read_trial(folder).params
        assert json.loads((folder / "recipe.json").read_text()) == params
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        (recipe,) = (json.loads(entry.value) for entry in model.metadata_props if entry.key == "recipe")
        assert recipe.items() <= params.items() and {"alpha", "image_size", "precision"} <= recipe.keys()
        run = runs[runs["tags.key"].str.endswith(f"/{folder.name}")].iloc[0]
        assert {name: run[f"params.{name}"] for name in params} == {name: str(value) for name, value in params.items()}
        assert run["metrics.achieved_params_ratio"] >= 0


def test_runs_are_nested_under_the_sweep_and_the_front_is_tagged(out: Path) -> None:
    runs = children(out)
    assert runs["tags.mlflow.parentRunId"].nunique() == 1
    candidates = runs[runs["tags.stage"] == "candidate"]
    on_front = candidates[candidates["tags.pareto"] == "true"]
    assert len(on_front) >= 1
    assert candidates["metrics.val_accuracy"].max() == on_front["metrics.val_accuracy"].max()
    parent = mlflow.MlflowClient().get_run(runs["tags.mlflow.parentRunId"].iloc[0])
    names = {file.path for file in mlflow.MlflowClient().list_artifacts(parent.info.run_id)}
    assert {"sweep.json", "pareto.html", "pareto.csv", "metrics_grid.png", "report.html", "latency.svg"} <= names
    assert parent.data.tags["mlflow.note.content"].startswith("**Balanced**: trial ")
    (table,) = out.glob("sweeps/*/front/pareto.csv")
    front = pd.read_csv(table, index_col="run_id")  # with the pooled latencies that the front is made of
    assert set(front.index) == set(on_front["run_id"])
    for alias, column in (("most_accurate", "val_accuracy"), ("fastest", "latency_p50_ms")):
        version = mlflow.MlflowClient().get_model_version_by_alias(parent.info.run_name, alias)
        best = front[column].max() if alias == "most_accurate" else front[column].min()
        assert front.loc[version.run_id, column] == best
    assert parent.data.metrics["hypervolume"] > 0


def test_independent_script_gets_the_recorded_test_accuracy_exactly(out: Path, photos: Path, tmp_path: Path) -> None:
    runs = children(out)
    champion = runs.loc[runs["metrics.score"].idxmax()]
    model = mlflow.artifacts.download_artifacts(
        run_id=champion["run_id"], artifact_path="model.onnx", dst_path=tmp_path
    )
    script = [sys.executable, str(REPO / "tests" / "evaluate_onnx.py"), model, str(photos / "test")]
    count, accuracy = subprocess.run(script, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert int(count) == 200 == champion["metrics.num_test"]
    assert float(accuracy) == champion["metrics.test_accuracy"]


def test_the_teacher_was_trained_once_and_its_logits_computed_once_a_view(out: Path) -> None:
    assert len(list(out.glob("store/teacher/*/record.json"))) == 1
    views = [json.loads(path.read_text())["view"] for path in out.glob("store/soft_labels/*/record.json")]
    needed = round(3 / 2)  # epochs of a cut teacher, the half that is taught
    assert sorted(views) == list(range(needed))


def test_images_that_are_elsewhere_are_told_before_the_first_cell(
    out: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records hold the name of a folder, not its place; every cell would fail by itself."""
    (sweep,) = (out / "sweeps").iterdir()
    before = set(sweep.rglob("*"))
    words = ["--name", sweep.name, "--run", "teacher", "--out", str(out), "--data-dir", str(out.parent / "data")]
    with pytest.raises(SystemExit) as caught:
        runtimes.main(words)
    error = capsys.readouterr().err
    assert (caught.value.code, error.count("\n")) == (2, 1)
    assert f"--dataset folder:{photos.name}: no such folder" in error
    assert set(sweep.rglob("*")) == before


def test_the_teachers_run_id_names_the_teacher(out: Path) -> None:
    (sweep,) = (out / "sweeps").iterdir()
    run_id = json.loads((sweep / "teacher" / "delivered.json").read_text())["run_id"]
    assert runtimes._of_run(sweep, run_id) == sweep / "teacher"


@pytest.mark.usefixtures("local_ray")
def test_runtimes_are_measured_beside_the_sweep_and_what_is_absent_is_a_row(
    out: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells are runs of another kind under the sweep's; --again measures those in doubt once more."""
    (sweep,) = (out / "sweeps").iterdir()
    words = f"--name {sweep.name} --run teacher --runtimes onnxruntime_cpu,onnxruntime_cuda --precisions fp32"
    words += f" --batches 1 --seconds 0.1 --out {out} --data-dir {out.parent / 'data'} --dataset folder:{photos}"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for again in ([], ["--again"]):  # what was absent is tried again in any case
        assert runtimes.main([*words.split(), *again]) == 0
        shown = capsys.readouterr().out
        assert "2 to measure" in shown
        assert "\n1 cell absent: this machine has no CUDA device\n" in shown
        (path,) = (sweep / "runtimes").glob("*onnxruntime_cpu*/record.json")
        row = json.loads(path.read_text())
        assert "9.0 %" not in row["tags"]["latency_verdict"]
        path.write_text(json.dumps(row | {"tags": row["tags"] | {"latency_verdict": "noisy: p50 within 9.0 %"}}))
    table = pd.read_csv(sweep / "runtimes" / "runtimes.csv").set_index("runtime")
    teacher = read_trial(sweep / "teacher").metrics
    assert table.loc["onnxruntime_cpu", "test_accuracy"] == teacher["test_accuracy"]
    assert table.loc["onnxruntime_cuda", "diagnosis"].startswith("absent: ")
    assert len(children(out)) == TRIALS + 1
    cells = mlflow.search_runs(search_all_experiments=True, filter_string="tags.kind = 'runtime'")
    assert sorted(cells["status"]) == ["FINISHED", "KILLED"]
    assert set(cells["tags.mlflow.parentRunId"]) == set(children(out)["tags.mlflow.parentRunId"])


def test_the_command_that_makes_a_champion_again_can_be_typed(out: Path) -> None:
    """But for `--threads 0`, which is refused once everything before it was taken."""
    (report,) = out.glob("sweeps/*/report/report.md")
    commands = re.findall(r"^python -m trainables\.stages\.candidate .*$", report.read_text(), re.MULTILINE)
    assert commands
    for line in commands:
        words = [sys.executable, *shlex.split(line)[1:], "--threads", "0"]
        done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, timeout=60)
        assert "--threads 0: must be 1 or more" in done.stderr, done.stderr


def test_the_teacher_is_the_scale_of_its_sweep(out: Path) -> None:
    """What it takes beside itself is 1.00 x; its score is its accuracy."""
    (teacher,) = (read_trial(path.parent) for path in out.glob("sweeps/*/teacher/record.json"))
    assert teacher.metrics["latency_p50_ms"] == teacher.metrics["reference_latency_p50_ms"]


def test_files_of_one_architecture_are_of_one_size(out: Path) -> None:
    """Whatever their recipes say: no trial is on the front for two letters less."""
    runs = children(out)
    finished = runs[(runs["tags.status"] == "finished") & (runs["tags.stage"] == "candidate")]
    if "tags.kept_in_float" in finished.columns:  # an INT8 file that keeps layers in float is larger
        finished = finished[finished["tags.kept_in_float"].isna()]
    sizes = finished.groupby(["metrics.num_params", "params.precision"])["metrics.size_bytes"].nunique()
    assert set(sizes) == {1}


def test_no_local_path_leaves_in_an_artifact(out: Path, photos: Path) -> None:
    shipped = ("model.onnx", "model.torchscript.pt", "recipe.json")
    files = [file for file in out.glob("sweeps/*/trials/*/*") if file.name in shipped]
    assert len(files) >= 2 * TRIALS  # and TorchScript, of FP32
    for file in files:
        content = file.read_bytes()
        assert str(photos).encode() not in content, file
        assert str(REPO).encode() not in content, file


def test_the_terminal_stays_calm(out: Path) -> None:
    lines = (out / "terminal.txt").read_text().splitlines()
    assert not [line for line in lines if "Warning" in line or "INFO" in line or "raylet" in line]
    choose, ship, browse, sweep, trials, charts = lines[-6:]
    assert re.fullmatch(rf"Choose: python -m analysis serve --name \S+ --out {re.escape(str(out))}", choose)
    assert re.fullmatch(rf"Ship: python -m analysis export \S+@balanced --to ship --out {re.escape(str(out))}", ship)
    assert "mlflow ui --backend-store-uri sqlite:///" in browse
    (parent,) = set(children(out)["tags.mlflow.parentRunId"])
    assert re.fullmatch(rf" +the sweep: http://127\.0\.0\.1:5000/#/experiments/\d+/runs/{parent}", sweep)
    assert "its trials: http://127.0.0.1:5000/#/experiments/" in trials
    assert charts.replace("charts", "its trials", 1) == f"{trials}&compareRunsMode=CHART"


def controls(runs: Runs) -> dict[str, int]:
    return dict(Counter(runs.frame["control"].dropna()))


@pytest.mark.nightly
def test_the_registered_model_answers_images_over_http(out: Path, photos: Path, tmp_path: Path) -> None:
    (name,) = (path.name for path in out.glob("sweeps/*"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = f"mlflow models serve -m models:/{name}@balanced --env-manager local --host 127.0.0.1 --port {port}"
    settings = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{out / 'mlflow.db'}"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *words.split()], env=settings, stdout=log, stderr=log, start_new_session=True
        )
    try:
        answer = served(port, server, tmp_path / "log")
        photo = next((photos / "test" / "7").glob("*.png"))
        pixels = np.asarray(Image.open(photo).convert("RGB"), dtype=np.float32).transpose(2, 0, 1)[None] / 255
        status, said = answer({"inputs": {"image": pixels.tolist()}})
        assert status == 200, said
        mlflow.set_tracking_uri(f"sqlite:///{out / 'mlflow.db'}")
        model = mlflow.onnx.load_model(f"models:/{name}@balanced")
        (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": pixels})
        np.testing.assert_allclose(said["predictions"]["logits"], expected, rtol=1e-4, atol=1e-5)
        status, said = answer({"inputs": {"image": pixels[:, :1].tolist()}})
        assert status == 400 and "(-1, 3, 32, 32)" in said["message"], said
        about = mlflow.models.get_model_info(f"models:/{name}@balanced").metadata
        assert json.loads(about["class_names"]) == list("0123456789")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def served(
    port: int, server: "subprocess.Popen[bytes]", log: Path
) -> Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]:
    """What asks a scoring server on this machine, once it is up: status and answer."""

    def ask(content: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        body, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            return error.code, json.loads(text) if text.startswith("{") else {"message": text}

    for _ in range(180):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                return ask
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.mark.usefixtures("local_ray")
def test_a_call_from_python_goes_on_with_the_commands_sweep(
    photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = out.glob("sweeps/*/sweep.toml")
    before = children(out)
    result = sweep(file, cpus=2, quiet=True, out=out, data_dir=out.parent / "data")
    assert result.complete and result.name == file.parent.name
    assert len(children(out)) == len(before), "a trial was made again"
    said = capsys.readouterr().out
    front = front_members(read_runs(f"sqlite:///{out / 'mlflow.db'}", result.name))
    pd.testing.assert_frame_equal(result.front, front.astype({"trial_number": int}))
    assert str(int(result.best()["trial_number"])) in said
    shown = result.figure()._repr_mimebundle_()
    page = html.unescape(shown["text/html"].partition('srcdoc="')[2].partition('" style')[0])
    assert unpacked(page)["pareto"].count(1) == len(result.front)
    assert base64.b64decode(shown["image/png"]) == (file.parent / "front" / "pareto.png").read_bytes()


@pytest.mark.usefixtures("local_ray")
def test_the_same_command_adds_only_what_is_missing(
    out: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trial more, and a champion with its controls; the command after that runs nothing."""
    (sweep,) = (out / "sweeps").iterdir()
    before = {path: path.stat().st_mtime_ns for path in out.glob("sweeps/*/trials/*/record.json")}
    more = ("--trials", str(TRIALS + 1), "--champions", "1", "--seeds", "2")
    assert in_this_process(photos, out, *more) == 0
    shown = capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in out.glob("sweeps/*/trials/*/record.json")}
    assert len(after) == TRIALS + 1
    assert before.items() <= after.items()
    assert len(children(out)) == TRIALS + 2 + 2 * len(ARMS)
    assert "Champions and controls" in shown and "n = 2" in shown
    assert (sweep / "front" / "controls.csv").exists()
    runs = read_runs(f"sqlite:///{out / 'mlflow.db'}", sweep.name)
    check_champions(runs, sweep.name)
    assert len(list(out.glob("store/teacher/*/record.json"))) == 1
    assert len(list(out.glob("store/scratch/*/record.json"))) == 2

    before = {path: path.stat().st_mtime_ns for path in out.glob("**/record.json")}
    assert len(list(sweep.glob("champions/*/record.json"))) == 2 * len(ARMS)
    assert in_this_process(photos, out, *more) == 0
    assert "Champions and controls" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.glob("**/record.json")} == before
    assert controls(read_runs(f"sqlite:///{out / 'mlflow.db'}", sweep.name)) == controls(runs)


def check_champions(runs: Runs, name: str) -> None:
    """Every arm has run with both seeds, and none of them is on the front."""
    assert controls(runs) == {"teacher": 1, **dict.fromkeys(ARMS, 2)}
    retrained = runs.frame[runs.frame["control"].isin(ARMS)]
    assert set(retrained["status"]) == {"finished"}
    assert retrained["trial_number"].isna().all()
    assert retrained["key"].str.match(rf"{name}/champions/\d+-[a-z_]+-seed[12]$").all()
    assert set(retrained["seed"]) == {1, 2}
    front = front_members(runs)
    assert len(front) and front["control"].isna().all()
    sizes = {arm: group["num_params"].unique().tolist() for arm, group in retrained.groupby("control")}
    assert sizes["from_scratch"] == sizes["champion"] == sizes["no_distillation"]


@pytest.mark.usefixtures("local_ray")
def test_what_cannot_keep_to_a_limit_is_told_to_optuna_and_costs_no_training(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through Tune, which hands nested results over flat. Ratio 0.2 leaves 2.0 MB, 0.6 leaves 0.5 MB."""
    out = tmp_path / "runs"
    space = "--pruning-method structured --pruning-ratio 0.2,0.6 --alpha 0.5 --temperature 2,4 --learning-rate 1e-3"
    space += " --student-model alexnet_small --precision fp32"
    words = [*space.split(), "--trials", "4", "--max-size-mb", "1", "--max-drop", "100", "--stopper", "off"]
    assert in_this_process(photos, out, *words, "--teacher-epochs", "1", "--student-epochs", "1") == 0
    shown = capsys.readouterr().out
    trials = [trial for trial in study_of(out).trials if not dropped(trial)]
    over = [trial for trial in trials if trial.params["pruning_ratio"] == 0.2]
    without = sum(RULED_OUT in trial.user_attrs for trial in study_of(out).trials)
    assert len(trials) == 2 + len(over)  # the other is wider than none, unless both were asked for at once
    assert (len(over), without > 0) in {(1, True), (2, False)}
    assert ("cost no trial" in shown) == (without > 0)
    for trial in over:
        assert trial.state.name == "PRUNED"
        assert trial.constraints["max_size_mb"] == pytest.approx(1.0, abs=0.1)
    for trial in trials:
        if trial not in over:
            assert trial.state.name == "COMPLETE"
            assert trial.constraints["max_size_mb"] < 0 > trial.constraints["max_drop"]
    runs = children(out)
    assert set(runs["tags.status"]) == {"finished", "infeasible"}
    assert sum(runs["tags.status"] == "infeasible") == len(over)
    feasible_students = {trial.params["temperature"] for trial in trials if trial not in over}
    assert len(list(out.glob("store/student/*/record.json"))) == len(feasible_students)
