import errno
import json
import uuid
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainables.config.candidate import CandidateConfig, DataConfig
from trainables.records.encoding import to_json
from trainables.records.trial import TrialRecord, read_trial
from trainables.store.objects import Objects
from trainables.tracking.transport import fetch, send
from trainables.trials.base import StageTrial
from trainables.trials.task import TrialTask, Worker

KEY = "night/00003"


@pytest.fixture(params=["memory", "folder"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "with a space")


def anything(record: TrialRecord) -> bool:
    return True


def made(folder: Path, *files: str, content: str = "weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / Path(name).name).write_text(content)
    record = TrialRecord(
        key=KEY,
        trial_number=3,
        stage="candidate",
        status="finished",
        reason="",
        params={},
        metrics={},
        tags={},
        curve=(),
        files=files,
        started=1.0,
        ended=2.0,
    )
    (folder / "record.json").write_text(to_json(record))
    return folder


def test_what_a_node_sends_the_driver_has(storage: str, tmp_path: Path) -> None:
    sent = made(tmp_path / "node", "model.onnx")
    (sent / "scratch").write_text("not of the record")
    assert not fetch(tmp_path / "driver", KEY, storage, fits=anything)
    send(sent, KEY, storage)
    assert fetch(tmp_path / "driver", KEY, storage, fits=anything)
    assert read_trial(tmp_path / "driver") == read_trial(sent)
    assert (tmp_path / "driver" / "model.onnx").read_text() == "weights"
    assert not (tmp_path / "driver" / "scratch").exists()


def test_sent_again_is_replaced_and_fetched_again_is_not(storage: str, tmp_path: Path) -> None:
    for content in ("first", "second"):
        send(made(tmp_path / "node", "model.onnx", content=content), KEY, storage)
    assert fetch(tmp_path / "driver", KEY, storage, fits=anything)
    assert (tmp_path / "driver" / "model.onnx").read_text() == "second"
    send(made(tmp_path / "node", "model.onnx", content="third"), KEY, storage)
    assert fetch(tmp_path / "driver", KEY, storage, fits=anything)
    assert (tmp_path / "driver" / "model.onnx").read_text() == "second"


def test_a_damaged_file_is_not_taken(storage: str, tmp_path: Path) -> None:
    send(made(tmp_path / "node", "model.onnx"), KEY, storage)
    url = storage if "://" in storage else f"file://{storage}"
    objects = Objects(f"{url}/outbox")
    (name,) = [name for name in objects.sizes() if name.endswith("model.onnx")]
    objects.write(name, b"WEIGHTS")
    assert not fetch(tmp_path / "driver", KEY, storage, fits=anything)
    assert not (tmp_path / "driver").exists()


@pytest.mark.parametrize("name", ["../../escaped", "/etc/escaped", "a/../../escaped", "..\\escaped", ""])
def test_a_manifest_that_points_outside_is_not_followed(tmp_path: Path, name: str) -> None:
    storage = tmp_path / "shared"
    send(made(tmp_path / "node", "model.onnx"), KEY, str(storage))
    path = storage / "outbox" / KEY / "manifest.json"
    row = json.loads(path.read_text())
    row["files"][name] = row["files"].pop("model.onnx")
    path.write_text(json.dumps(row))
    assert not fetch(tmp_path / "a" / "b" / "driver", KEY, str(storage), fits=anything)
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_record_that_names_files_outside_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "node", "../../secret")
    with pytest.raises(ValueError, match=r"names files outside its folder: \['../../secret'\]"):
        read_trial(tmp_path / "node")


def test_a_network_that_is_away_is_waited_for_and_then_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class BotoError(Exception):
        """As buckets' clients have them: no OSError."""

    objects = Objects(f"memory://{uuid.uuid4().hex}", patience_s=5.0)
    calls = []

    def away(path: str) -> bytes:
        calls.append(path)
        if len(calls) < 3:
            raise BotoError("could not connect")
        return b"here"

    monkeypatch.setattr(objects._fs, "cat_file", away)
    monkeypatch.setattr("trainables.store.objects.time.sleep", lambda seconds: None)
    assert objects.read("x") == b"here"
    calls.clear()
    impatient = objects.without_retries()
    monkeypatch.setattr(impatient._fs, "cat_file", away)
    with pytest.raises(ConnectionError, match="does not answer: could not connect"):
        impatient.read("x")
    assert len(calls) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_the_trial_without_a_result(tmp_path: Path, number: int) -> None:
    trial = full_disk_trial(tmp_path, OSError(number, "No space left on device", "/out/store/weights.pt"))
    report = trial.step()
    assert report == {"full": "/out/store/weights.pt", "final": False, "done": True}
    assert not (tmp_path / "trial").exists()


def test_another_error_of_the_machine_is_raised_to_be_tried_again(tmp_path: Path) -> None:
    trial = full_disk_trial(tmp_path, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OSError, match="Input/output error"):
        trial.step()


def full_disk_trial(tmp_path: Path, error: OSError) -> StageTrial:
    class Full(StageTrial):
        def begin(self, task: Any, place: Any) -> Generator[Any, None, Any]:
            raise error
            yield

    trial = object.__new__(Full)
    out = tmp_path / "out"
    worker = Worker(out=out, data=DataConfig(), data_dir=out, storage=None, device="cpu", threads=1)
    candidate = CandidateConfig().resolve(SimpleNamespace(name="digits", image_size=32), device="cpu")
    trial.config = TrialTask(candidate=candidate, worker=worker, key="s/00000", folder=out / "trial").tune_config()
    return trial
