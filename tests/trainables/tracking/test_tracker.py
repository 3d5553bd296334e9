import contextlib
import dataclasses
import http.server
import json
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import mlflow
import numpy as np
import onnx
import pytest
from mlflow.entities import Run
from onnx import TensorProto, helper

from analysis.pages.mlflow_view import view_tags
from trainables.layout import DELIVERED, database_path, database_uri
from trainables.records.encoding import to_json
from trainables.records.stages import EpochRecord
from trainables.records.trial import TrialRecord
from trainables.tracking import tracker as tracker_module
from trainables.tracking.tracker import AwayError, DeletedError, Tracker, TrackingError

PARAMS = {"temperature": 4.0, "alpha": 0.9, "pruning_method": "structured", "image_size": None, "flip": True}
PARAMS |= {"student_model": "resnet8", "pruning_ratio": 0.45, "precision": "int8_ptq"}
METRICS = {"val_accuracy": 0.91, "latency_p50_ms": 1.25, "size_bytes": 1_400_000}

Left = Callable[..., Path]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def uri(out: Path) -> str:
    return f"sqlite:///{out / 'mlflow.db'}"


@pytest.fixture(scope="module")
def client(uri: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(uri)


def open_tracker(uri: str, out: Path, sweep: str = "night", experiment: str = "digits") -> Tracker:
    return Tracker(uri, experiment=experiment, sweep=sweep, sweep_id=sweep, artifacts=out / "artifacts")


@pytest.fixture(scope="module")
def tracker(uri: str, out: Path) -> Tracker:
    return open_tracker(uri, out)


def curve(epochs: int, stage: str = "student") -> tuple[EpochRecord, ...]:
    return tuple(
        EpochRecord(
            stage=stage,
            epoch=epoch,
            epochs=epochs,
            train_loss=1 / epoch,
            train_accuracy=0.5,
            val_loss=2 / epoch,
            val_accuracy=1 - 1 / (epoch + 1),
            learning_rate=1e-3,
            seconds=0.1,
        )
        for epoch in range(1, epochs + 1)
    )


@pytest.fixture
def left(tmp_path: Path, request: pytest.FixtureRequest) -> Left:
    """Leaves a trial's folder as a trial would, under a key of this test's own."""

    def leave(**changes: Any) -> Path:
        folder = tmp_path / f"{request.node.name}-{time.monotonic_ns()}"
        folder.mkdir()
        record = TrialRecord(
            key=f"night/{folder.name}",
            trial_number=7,
            stage="candidate",
            status="finished",
            reason="",
            params=PARAMS,
            metrics=METRICS,
            tags={"latency_device": "cpu:1"},
            curve=curve(3),
            files=("model.onnx", "recipe.json"),
            started=1_700_000_000.0,
            ended=1_700_000_060.0,
        )
        record = dataclasses.replace(record, **changes)
        for name in record.files:
            (folder / name).write_text(f"content of {name}")
        (folder / "record.json").write_text(to_json(record))
        return folder

    return leave


def runs_of(client: mlflow.MlflowClient, folder: Path, experiment: str = "digits") -> list[Run]:
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client.search_runs([found.experiment_id], f"tags.key = 'night/{folder.name}'")


def test_delivered_twice_is_one_complete_run(tracker: Tracker, client: mlflow.MlflowClient, left: Left) -> None:
    folder = left()
    assert tracker.deliver(folder, {"score": 91.5})
    assert tracker.deliver(folder, {"score": 91.5})
    (run,) = runs_of(client, folder)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"{folder.name} resnet8 structured 0.45, int8_ptq"
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_000, 1_700_000_060_000)
    assert run.data.params == {name: str(value) for name, value in PARAMS.items()}
    assert run.data.metrics.items() >= (METRICS | {"score": 91.5}).items()
    assert run.data.tags["mlflow.parentRunId"] == tracker.parent_id
    expected = {"kind": "trial", "sweep": "night", "stage": "candidate", "status": "finished", "trial_number": "7"}
    assert run.data.tags.items() >= (expected | {"latency_device": "cpu:1"}).items()
    assert "reason" not in run.data.tags
    assert "control" not in run.data.tags


def test_a_folder_whose_record_has_changed_is_delivered_again(
    tracker: Tracker, client: mlflow.MlflowClient, left: Left
) -> None:
    """`delivered.json` is believed for the record that it was written for, and for no other one."""
    folder = left()
    assert tracker.deliver(folder, {})
    row = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(row | {"params": {**PARAMS, "alpha": 0.1}, "metrics": {"x": 1.0}}))
    assert tracker.deliver(folder, {})
    old, new = sorted(runs_of(client, folder), key=lambda run: run.data.tags["kind"])
    assert (old.data.tags["kind"], old.data.params["alpha"]) == ("replaced", "0.9")
    assert (new.data.tags["kind"], new.data.params["alpha"], new.data.metrics["x"]) == ("trial", "0.1", 1.0)
    assert json.loads((folder / DELIVERED).read_text())["run_id"] == new.info.run_id


@pytest.mark.parametrize("damage", [b"", b'{"run_id": "a', b"\0" * 40, b"[]"])
def test_a_damaged_marker_of_delivery_is_written_anew(
    tracker: Tracker, client: mlflow.MlflowClient, left: Left, damage: bytes
) -> None:
    folder = left()
    assert tracker.deliver(folder, {})
    (folder / DELIVERED).write_bytes(damage)
    assert tracker.deliver(folder, {})
    (run,) = runs_of(client, folder)
    assert json.loads((folder / DELIVERED).read_text())["run_id"] == run.info.run_id


@pytest.mark.parametrize(
    ("damage", "reason"),
    [({"sweep_id": "theirs"}, r"is the result of another sweep \(id theirs\); move it away"), ({"files": 1}, "files")],
)
def test_what_another_sweep_wrote_or_nobody_can_read_is_refused(
    uri: str, out: Path, client: mlflow.MlflowClient, left: Left, damage: dict[str, Any], reason: str
) -> None:
    folder, tracker = left(), open_tracker(uri, out)
    row = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(row | damage))
    assert not tracker.deliver(folder, {})
    assert re.search(reason, tracker.away or "")
    assert runs_of(client, folder) == []


def test_two_sweeps_that_start_at_once_make_one_database(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from trainables.tracking.tracker import Tracker
out, name = Path(sys.argv[1]), sys.argv[2]
input()
Tracker(f"sqlite:///{out}/mlflow.db", experiment="digits", sweep=name, sweep_id=name, artifacts=out / "artifacts")
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen([*words, name], stdin=PIPE, stderr=PIPE, text=True) for name in ("one", "two")]
    for process in both:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = (found for found in client.search_experiments() if found.name == "digits")
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_deleted_experiment_is_told_with_the_way_back(out: Path, uri: str, client: mlflow.MlflowClient) -> None:
    number = client.create_experiment("gone")
    client.delete_experiment(number)
    with pytest.raises(DeletedError, match=f"gone was deleted; bring it back by .* --experiment-id {number}`"):
        open_tracker(uri, out, experiment="gone")
    client.restore_experiment(number)
    assert open_tracker(uri, out, experiment="gone").experiment_id == number


def test_a_database_of_several_folders_keeps_the_places_of_their_artifacts(
    uri: str, out: Path, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    """Only what lies beside OUT/artifacts is OUT's own, and follows it when OUT is moved."""
    open_tracker(uri, out)
    before = client.get_experiment_by_name("digits")
    open_tracker(uri, tmp_path)
    after = client.get_experiment_by_name("digits")
    assert before and after and before.artifact_location == after.artifact_location == (out / "artifacts").as_uri()


def test_a_folder_whose_name_is_no_address_holds_its_own_database(tracker: Tracker, uri: str, tmp_path: Path) -> None:
    """`?` ends the path of an address, and `%` begins a code."""
    out = tmp_path / "really? 100%3F"
    out.mkdir()
    shutil.copy(database_path(uri), out / "mlflow.db")  # an empty one is made slowly
    parent = open_tracker(database_uri(out), out, sweep="odd").parent_id
    with contextlib.closing(sqlite3.connect(out / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs WHERE run_uuid = ?", (parent,)).fetchone() == (1,)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_curves_have_one_point_an_epoch(tracker: Tracker, client: mlflow.MlflowClient, left: Left) -> None:
    folder = left(curve=curve(3) + curve(2, "recovery"))
    assert tracker.deliver(folder, {})
    (run,) = runs_of(client, folder)
    for stage, epochs in (("student", 3), ("recovery", 2)):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate"):
            points = client.get_metric_history(run.info.run_id, f"{stage}_{name}")
            assert [point.step for point in points] == list(range(1, epochs + 1))
    assert run.data.metrics["val_accuracy"] == METRICS["val_accuracy"]


def test_artifacts_are_the_files_of_the_record(
    tracker: Tracker, client: mlflow.MlflowClient, left: Left, out: Path
) -> None:
    folder = left()
    assert tracker.deliver(folder, {})
    (run,) = runs_of(client, folder)
    assert sorted(file.path for file in client.list_artifacts(run.info.run_id)) == ["model.onnx", "recipe.json"]
    stored = out / "artifacts" / run.info.run_id / "artifacts" / "model.onnx"
    assert stored.read_text() == "content of model.onnx"


@pytest.mark.parametrize("marker", [None, "", "{", "null", "[1]"])
def test_a_lost_or_damaged_marker_does_not_make_a_second_run(
    uri: str, client: mlflow.MlflowClient, left: Left, out: Path, marker: str | None
) -> None:
    folder = left()
    assert open_tracker(uri, out).deliver(folder, {"score": 91.5})
    (before,) = runs_of(client, folder)
    assert json.loads((folder / DELIVERED).read_text())["run_id"] == before.info.run_id
    (folder / DELIVERED).unlink()
    if marker is not None:
        (folder / DELIVERED).write_text(marker)
    assert open_tracker(uri, out).deliver(folder, {"score": 91.5})
    (after,) = runs_of(client, folder)
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    assert len(client.get_metric_history(after.info.run_id, "student_val_loss")) == 3
    assert json.loads((folder / DELIVERED).read_text())["run_id"] == before.info.run_id


def test_a_delivery_cut_off_by_kill_9_is_completed(tracker: Tracker, client: mlflow.MlflowClient, left: Left) -> None:
    folder = left()
    tags = {"kind": "trial", "sweep": "night", "key": f"night/{folder.name}", "mlflow.parentRunId": tracker.parent_id}
    half = client.create_run(tracker.experiment_id, tags=tags).info.run_id
    client.log_param(half, "temperature", "4.0")
    client.log_metric(half, "val_accuracy", METRICS["val_accuracy"], timestamp=1_700_000_060_000, step=0)
    assert tracker.deliver(folder, {"score": 91.5})
    (run,) = runs_of(client, folder)
    assert (run.info.run_id, run.info.status) == (half, "FINISHED")
    assert run.data.params.keys() == PARAMS.keys()
    assert run.data.metrics["score"] == 91.5
    assert len(client.get_metric_history(half, "val_accuracy")) == 1


@pytest.mark.parametrize(
    ("status", "expected"), [("failed", "FAILED"), ("infeasible", "KILLED"), ("stopped", "KILLED")]
)
def test_a_trial_without_a_result_says_why(
    tracker: Tracker, client: mlflow.MlflowClient, left: Left, status: str, expected: str
) -> None:
    folder = left(status=status, reason="pruning_ratio=0.9 leaves no channel", metrics={}, curve=(), files=())
    assert tracker.deliver(folder, {})
    (run,) = runs_of(client, folder)
    assert run.info.status == expected
    assert run.data.tags["status"] == status
    assert run.data.tags["reason"] == "pruning_ratio=0.9 leaves no channel"
    assert run.data.metrics == {}


def test_what_is_measured_later_is_the_same_run_and_says_what_holds_now(
    tracker: Tracker, client: mlflow.MlflowClient, left: Left
) -> None:
    folder = left(
        status="infeasible", reason="this machine has no CUDA device", metrics={}, curve=(), files=(), tags={}
    )
    assert tracker.deliver(folder, {})
    row = json.loads((folder / "record.json").read_text())
    row |= {"status": "finished", "reason": "", "metrics": METRICS, "tags": {"latency_verdict": "clean"}}
    (folder / "record.json").write_text(json.dumps(row))
    (folder / DELIVERED).unlink()
    assert tracker.deliver(folder, {})
    (run,) = runs_of(client, folder)
    assert run.info.status == "FINISHED"
    assert run.data.tags.items() >= {"status": "finished", "reason": "", "latency_verdict": "clean"}.items()
    assert run.data.metrics["val_accuracy"] == METRICS["val_accuracy"]


def test_the_teacher_is_a_control_without_a_number(tracker: Tracker, client: mlflow.MlflowClient, left: Left) -> None:
    folder = left(stage="teacher", trial_number=None)
    assert tracker.deliver(folder, {})
    (run,) = runs_of(client, folder)
    assert run.data.tags["control"] == "teacher"
    assert "trial_number" not in run.data.tags


def test_two_thousand_points_and_more_are_batched(tracker: Tracker, client: mlflow.MlflowClient, left: Left) -> None:
    folder = left(curve=curve(400), files=())
    assert tracker.deliver(folder, {})
    (run,) = runs_of(client, folder)
    points = client.get_metric_history(run.info.run_id, "student_val_loss")
    assert [point.step for point in points] == list(range(1, 401))
    assert points[-1].value == pytest.approx(2 / 400)
    assert run.data.metrics["latency_p50_ms"] == METRICS["latency_p50_ms"]


def closed_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_an_unreachable_server_is_told_within_seconds_and_the_outbox_waits(
    uri: str, client: mlflow.MlflowClient, left: Left, out: Path
) -> None:
    folder, started = left(), time.monotonic()
    away = open_tracker(closed_port(), out)
    assert "127.0.0.1" in (away.away or "")
    assert not away.deliver(folder, {})
    with pytest.raises(AwayError, match=r"127\.0\.0\.1"):
        away.sweep_metric("hypervolume", {0: 1.0})
    assert time.monotonic() - started < 10
    assert not (folder / DELIVERED).exists()
    working = open_tracker(uri, out)
    assert working.deliver(folder, {})
    assert working.deliver(folder, {})
    assert len(runs_of(client, folder)) == 1


class Says(http.server.BaseHTTPRequestHandler):
    """A server that answers, but is no tracking server for us."""

    status = 403

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"Invalid Host header - possible DNS rebinding attack detected")

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("status", "named"), [(403, "403"), (404, "404"), (200, "not in a valid JSON format")])
def test_a_server_that_says_no_is_refused_at_once(
    out: Path, monkeypatch: pytest.MonkeyPatch, status: int, named: str
) -> None:
    monkeypatch.setattr(Says, "status", status)
    with http.server.HTTPServer(("127.0.0.1", 0), Says) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(TrackingError, match=named) as caught:
            open_tracker(f"http://127.0.0.1:{server.server_port}", out)
        server.shutdown()
    assert not isinstance(caught.value, AwayError)
    assert "\n" not in str(caught.value)


def test_a_server_that_has_trouble_is_asked_again_later(out: Path, left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Says, "status", 503)
    with http.server.HTTPServer(("127.0.0.1", 0), Says) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tracker = open_tracker(f"http://127.0.0.1:{server.server_port}", out)
        server.shutdown()
    assert "503" in (tracker.away or "")
    assert not tracker.deliver(left(), {})


def test_a_store_that_goes_away_is_left_alone_then_gets_everything_once(
    uri: str, client: mlflow.MlflowClient, left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [left(), left()]
    artifacts = tmp_path / "artifacts"
    tracker = Tracker(uri, experiment="moving", sweep="night", sweep_id="night", artifacts=artifacts)
    artifacts.write_text("a file where the artifact folder was")
    assert not tracker.deliver(folders[0], {})
    artifacts.unlink()
    started = time.monotonic()
    assert not tracker.deliver(folders[1], {})  # not asked again yet
    assert time.monotonic() - started < 0.5
    assert not (folders[0] / DELIVERED).exists()
    monkeypatch.setattr(tracker_module, "RETRY_AFTER_S", 0.0)
    again = Tracker(uri, experiment="moving", sweep="night", sweep_id="night", artifacts=artifacts)
    assert again.parent_id == tracker.parent_id
    assert all(again.deliver(folder, {}) for folder in folders)
    for folder in folders:
        (run,) = runs_of(client, folder, "moving")
        assert run.info.status == "FINISHED"
        assert len(client.list_artifacts(run.info.run_id)) == 2


def test_a_very_long_reason_is_delivered_too(tracker: Tracker, client: mlflow.MlflowClient, left: Left) -> None:
    folder = left(status="failed", reason="x" * 20_000, metrics={}, curve=(), files=())
    assert tracker.deliver(folder, {})
    (run,) = runs_of(client, folder)
    assert run.data.tags["reason"].startswith("xxxx")


def test_sweeps_share_an_experiment_and_each_has_one_parent(uri: str, tracker: Tracker, out: Path) -> None:
    other = open_tracker(uri, out, "other")
    assert other.experiment_id == tracker.experiment_id
    assert other.parent_id != tracker.parent_id == open_tracker(uri, out).parent_id


def test_the_parent_takes_files_curves_marks_and_its_end(
    uri: str, client: mlflow.MlflowClient, left: Left, out: Path, tmp_path: Path
) -> None:
    tracker = open_tracker(uri, out, "ends")
    folder = left()
    assert tracker.deliver(folder, {})
    (run,) = runs_of(client, folder)
    (tmp_path / "sweep.json").write_text("{}")
    tracker.sweep_artifacts([tmp_path / "sweep.json"])
    tracker.sweep_metric("hypervolume", {0: 0.1})
    tracker.sweep_metric("hypervolume", {0: 0.1, 1: 0.4})
    tracker.mark_front({run.info.run_id})
    tracker.close("interrupted")
    parent = client.get_run(tracker.parent_id)
    assert (parent.info.status, parent.data.tags["status"]) == ("KILLED", "interrupted")
    assert parent.data.metrics["hypervolume"] == 0.4
    assert len(client.get_metric_history(tracker.parent_id, "hypervolume")) == 2
    assert [file.path for file in client.list_artifacts(tracker.parent_id)] == ["sweep.json"]
    assert client.get_run(run.info.run_id).data.tags["pareto"] == "true"
    tracker.mark_front(set())
    assert client.get_run(run.info.run_id).data.tags["pareto"] == "false"
    tracker.close("finished")
    assert client.get_run(tracker.parent_id).info.status == "FINISHED"


def test_what_another_store_got_is_delivered_to_this_one_too(
    uri: str, client: mlflow.MlflowClient, left: Left, out: Path
) -> None:
    """A lost mlflow.db, or another --tracking-uri: the marker speaks for the store that it names."""
    folder = left()
    assert open_tracker(uri, out, sweep="before").deliver(folder, {})
    assert open_tracker(uri, out, sweep="night").deliver(folder, {})
    assert len(runs_of(client, folder)) == 2


def linear_model(folder: Path, scale: float) -> None:
    """An ONNX file that multiplies the channels' means by `scale`."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    constants = [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])]
    constants.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]))
    nodes = [helper.make_node("ReduceMean", ["image", "axes"], ["means"], keepdims=0)]
    nodes.append(helper.make_node("Mul", ["means", "scale"], ["logits"]))
    graph = helper.make_graph(nodes, "means", [image], [logits], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "model.onnx"
    )


@pytest.fixture
def registered(uri: str, client: mlflow.MlflowClient, left: Left, out: Path) -> tuple[str, list[str]]:
    """A registered model of two candidates, asked for twice; its name and the runs."""
    tracker, run_ids = open_tracker(uri, out), []
    for scale in (1.0, 2.0):
        folder = left()
        linear_model(folder, scale)
        assert tracker.deliver(folder, {})
        run_ids.append(runs_of(client, folder)[0].info.run_id)
    for aliases in ({"fastest": 0, "balanced": 0}, {"fastest": 0, "balanced": 1}):
        tracker.register(
            "it's night",
            {run_ids[0]: "the one", run_ids[1]: "the other"},
            {alias: run_ids[number] for alias, number in aliases.items()},
        )
    return "it's night", run_ids


def test_a_second_sweep_of_one_name_leaves_the_firsts_model_alone(
    uri: str, client: mlflow.MlflowClient, left: Left, out: Path, registered: tuple[str, list[str]]
) -> None:
    name, run_ids = registered
    folder = left()
    linear_model(folder, 3.0)
    other = Tracker(uri, experiment="digits", sweep="night", sweep_id="another", artifacts=out / "artifacts")
    assert other.deliver(folder, {})
    run_id = next(run.info.run_id for run in runs_of(client, folder) if run.info.run_id not in run_ids)
    assert other.register(name, {run_id: "mine"}, {"balanced": run_id}) == f"{name}-anothe"
    assert client.get_model_version_by_alias(name, "balanced").run_id == run_ids[1]
    assert client.get_model_version_by_alias(f"{name}-anothe", "balanced").run_id == run_id


def test_front_members_are_registered_once_load_back_and_predict(
    uri: str, client: mlflow.MlflowClient, registered: tuple[str, list[str]]
) -> None:
    name, run_ids = registered
    versions = {alias: client.get_model_version_by_alias(name, alias) for alias in ("fastest", "balanced")}
    assert [versions[alias].run_id for alias in ("fastest", "balanced")] == run_ids
    assert versions["fastest"].description == "the one"
    assert versions["balanced"].tags["val_accuracy"] == "0.91"
    assert len(client.search_model_versions(f"run_id = '{run_ids[0]}'")) == 1
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
        loaded = mlflow.pyfunc.load_model(f"models:/{name}@balanced")
        np.testing.assert_allclose(loaded.predict({"image": images})["logits"], 2 * images.mean((2, 3)), rtol=1e-5)
        proto = mlflow.onnx.load_model(f"models:/{name}@fastest")
        assert [entry.name for entry in proto.graph.output] == ["logits"]
    finally:
        mlflow.set_tracking_uri(before)
    (image,) = loaded.metadata.signature.inputs
    assert (image.name, image.shape, image.type) == ("image", (-1, 3, 8, 8), np.dtype(np.float32))
    assert loaded.metadata.saved_input_example_info is not None
    assert loaded.metadata.metadata["image"].startswith("RGB in [0, 1]")
    requirements = Path(mlflow.artifacts.download_artifacts(versions["fastest"].source, tracking_uri=uri))
    named = (requirements / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in named] == ["mlflow", "onnx", "numpy", "onnxruntime"]


def test_the_list_of_runs_gets_a_view_and_the_sweep_its_words(
    uri: str, client: mlflow.MlflowClient, tracker: Tracker
) -> None:
    tracker.tag_experiment(view_tags("night"))
    tracker.describe("**Balanced**: trial 7")
    tags = client.get_experiment(tracker.experiment_id).tags
    assert "metrics.`val_accuracy`" in json.loads(tags["mlflow.sharedViewState.night"])["selectedColumns"]
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert client.get_run(tracker.parent_id).data.tags["mlflow.note.content"] == "**Balanced**: trial 7"
