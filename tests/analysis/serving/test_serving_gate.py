"""Who may read the page and which files leave: the token, names of this machine, known files of finished candidates."""

import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.__main__ import main
from tests.analysis.serving.served import Served, made, run_of, serving

pytest.importorskip("dash", reason="an extra: uv sync --extra serve")
SECRET = b"not for others"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of which trial 1 has a link for a model, and the store says that files of trial 2 lie elsewhere."""
    out = tmp_path_factory.mktemp("around") / "runs"
    client = made(out)
    secret = out.parent / "model.onnx"
    secret.write_bytes(SECRET)
    linked = out / "artifacts" / run_of(client, 1) / "artifacts" / "model.onnx"
    linked.unlink()
    linked.symlink_to(secret)
    with sqlite3.connect(out / "mlflow.db") as store:
        store.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (out.parent.as_uri(), run_of(client, 2)))
    return out


@pytest.fixture(scope="module")
def served(night: Path) -> Iterator[Served]:
    with serving(night) as running:
        yield running


@pytest.fixture(scope="module")
def runs(night: Path) -> dict[int, str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{night / 'mlflow.db'}")
    return {number: run_of(client, number) for number in (0, 1, 2, 11)}


def test_the_printed_address_opens_it_and_nothing_may_frame_or_leave_it(served: Served) -> None:
    answer = served.get(served.path)
    assert answer.status == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "http" not in policy
    assert answer.headers["Referrer-Policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/", "/_dash-layout", "/x/", "//", "/assets/page.js", "/%2e%2e/", "*"])
def test_without_the_token_nothing_is_answered(served: Served, path: str) -> None:
    assert served.get(path).status == 403
    wrong = served.path[:-2] + ("a" if served.path[-2] != "a" else "b") + "/"
    assert served.get(wrong).status == 403
    assert served.get(served.path.upper()).status == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8050", "127.0.0.1.evil.example", "[", "", "10.0.0.1"])
def test_another_host_is_refused(served: Served, host: str) -> None:
    """A web page whose name was made to point here (DNS rebinding) has its own name in `Host`."""
    assert served.get(served.path, Host=host).status == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:1", "http://localhost:5000", "null", ""])
def test_another_origin_is_refused(served: Served, origin: str) -> None:
    assert served.get(f"{served.path}_dash-layout", Origin=origin).status == 403


def test_the_same_origin_and_a_forwarded_port_are_let_in(served: Served) -> None:
    """`ssh -L 9000:127.0.0.1:8050` gives the page another port on the reader's machine."""
    own = f"http://127.0.0.1:{served.port}"
    assert served.get(f"{served.path}_dash-layout", Origin=own).status == 200
    assert served.get(served.path, Host="localhost:9000", Origin="http://localhost:9000").status == 200


def test_it_listens_on_loopback_alone(served: Served) -> None:
    mine = socket.gethostbyname(socket.gethostname())
    if mine.startswith("127."):
        pytest.skip("asks by an address that is not loopback, and this machine has none")
    with pytest.raises(OSError), socket.create_connection((mine, served.port), timeout=5):
        pass


def test_a_file_is_answered_byte_for_byte_and_as_a_download(served: Served, night: Path, runs: dict[int, str]) -> None:
    answer = served.get(f"{served.path}file/{runs[0]}/model.onnx")
    assert answer.status == 200
    assert answer.body == (night / "artifacts" / runs[0] / "artifacts" / "model.onnx").read_bytes()
    assert answer.headers["Content-Disposition"] == "attachment; filename=model.onnx"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_links_other_folders_and_unfinished_trials_are_refused(served: Served, runs: dict[int, str]) -> None:
    for number in (1, 2, 11):  # a link, a place outside OUT, a failed trial
        answer = served.get(f"{served.path}file/{runs[number]}/model.onnx")
        assert (answer.status, SECRET in answer.body) == (404, False), number


@pytest.mark.parametrize(
    "tail",
    [
        "RUN/mlflow.db",
        "RUN/../../../mlflow.db",
        "RUN/..%2f..%2f..%2fmlflow.db",
        "RUN/model.onnx/..",
        "RUN/model.onnx%00",
        "../mlflow.db",
        "..%2f..%2fmlflow.db/model.onnx",
        "%2e%2e/model.onnx",
        "/etc/passwd",
        "RUN/%2fetc%2fpasswd",
        "nobody/model.onnx",
        "RUN/weights.pt",
    ],
)
def test_a_path_in_a_request_leads_nowhere(served: Served, runs: dict[int, str], tail: str) -> None:
    answer = served.get(f"{served.path}file/{tail.replace('RUN', runs[0])}")
    # what is no file's address is answered by the page itself, as every address below the token
    assert answer.status in (400, 404) or answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers["Content-Disposition"] is None
    assert b"SQLite" not in answer.body and b"root:" not in answer.body


@pytest.mark.parametrize("tail", ["..%2fpage.py", "../server.py", "%2e%2e/%2e%2e/__main__.py"])
def test_assets_are_the_pages_own(served: Served, tail: str) -> None:
    answer = served.get(f"{served.path}assets/{tail}")
    assert b"import" not in answer.body


def test_a_taken_port_is_named_on_one_line(night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--out", str(night), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"python -m analysis serve: --port {port} cannot be had (Address already in use);"
        " name another, or none for any free one.\n"
    )


def test_without_dash_the_extra_is_named(night: Path) -> None:
    hide = (
        "import importlib.util, sys; find = importlib.util.find_spec;"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'dash' else find(name, *rest);"
        "from analysis.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", hide, "serve", "--out", str(night)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == (
        "python -m analysis serve: The page needs Dash: `pip install 'compression-sweeps[serve]'`"
        " or `uv sync --extra serve`.\n"
    )
