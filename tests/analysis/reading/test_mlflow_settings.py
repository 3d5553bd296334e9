import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.reading.mlflow_client import ClientStore
from trainables.config.mlflow_settings import READING, WRITING, mlflow_settings
from trainables.tracking.tracker import Tracker

ROOT = Path(__file__).parents[3]
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


class Trouble(http.server.BaseHTTPRequestHandler):
    """A server that is asked to come back later, and counts who does."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(503)
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in (*WRITING, *READING):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Trouble, "asked", 0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trouble) as here:
        threading.Thread(target=here.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{here.server_port}"
        here.shutdown()


def write(server: str, folder: Path) -> int:
    """Requests that one failed attempt to write makes."""
    before = Trouble.asked
    assert Tracker(server, experiment="digits", sweep="night", sweep_id="1", artifacts=folder).away
    return Trouble.asked - before


def read(server: str) -> int:
    before = Trouble.asked
    with pytest.raises(ValueError, match="Cannot read tracking_uri"):
        ClientStore(server).parents()
    return Trouble.asked - before


def test_reading_is_tried_twice_and_writing_once_in_one_process_whatever_comes_first(
    server: str, tmp_path: Path
) -> None:
    assert [read(server), write(server, tmp_path), read(server), write(server, tmp_path)] == [2, 1, 2, 1]
    assert not {*WRITING, *READING} & set(os.environ)


def test_what_the_user_has_set_stays(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RETRIES, "2")
    assert [read(server), write(server, tmp_path)] == [3, 3]
    assert os.environ[RETRIES] == "2"


def test_within_writing_a_reader_does_not_change_what_is_set(server: str) -> None:
    with mlflow_settings(WRITING):
        with mlflow_settings(READING):
            assert os.environ[RETRIES] == "0"
        assert os.environ[RETRIES] == "0"
    assert RETRIES not in os.environ


def test_no_other_module_sets_what_mlflow_reads() -> None:
    files = [file for package in ("sweeps", "trainables", "analysis") for file in (ROOT / package).rglob("*.py")]
    assert [file.name for file in files if "MLFLOW_" in file.read_text(encoding="utf-8")] == ["mlflow_settings.py"]
