"""Another user of the machine gets nowhere in a running sweep, and would be noticed if he did."""

import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from other_user import PASSWORD, _judged
from stranger import ask_pages, become, connect, enter, look

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists() or os.getuid() != 0, reason="only root becomes another"),
]
SCRIPT = Path(__file__).with_name("other_user.py")


@pytest.mark.ray
@pytest.mark.nightly  # tests/sweeps/cluster/test_security.py is the small form: a few of these attempts
@pytest.mark.timeout(900)
@pytest.mark.parametrize("form", [["--ray-alone"], ["--trials", "1"]], ids=["Ray alone", "a sweep"])
def test_nothing_of_a_running_sweep_is_open_to_another_user(form: list[str], tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), *form, "--out", str(tmp_path / "x")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " attempts, 0 faults" in done.stdout


@pytest.fixture
def stranger() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"), initializer=become) as pool:
        yield pool


@pytest.fixture
def world() -> Iterator[Path]:
    """A folder that everybody may enter, as pytest's own are not."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def outcomes(stranger: ProcessPoolExecutor, action: object, target: str, world: Path) -> dict[str, set[str]]:
    rows = [_judged(target, one, world) for one in stranger.submit(action, target, [PASSWORD]).result()]
    return {kind: {row.outcome for row in rows if row.kind == kind} for kind in {row.kind for row in rows}}


@pytest.mark.parametrize(
    ("place", "mode", "text", "found"),
    [
        ("runs", 0o644, "x", {"read": {"public"}, "write": {"refused"}, "secret": {"refused"}}),
        ("runs", 0o644, f"token={PASSWORD}", {"read": {"public"}, "write": {"refused"}, "secret": {"FAULT"}}),
        ("runs", 0o666, "x", {"read": {"public"}, "write": {"FAULT"}, "secret": {"refused"}}),
        ("tmp", 0o644, "x", {"read": {"FAULT"}, "write": {"refused"}, "secret": {"refused"}}),
        ("tmp", 0o600, "x", {"read": {"refused"}, "write": {"refused"}}),
    ],
)
def test_open_files_are_faults(
    place: str, mode: int, text: str, found: dict[str, set[str]], world: Path, stranger: ProcessPoolExecutor
) -> None:
    file = world / place / "file"
    file.parent.mkdir()
    file.write_text(text)
    file.chmod(mode)
    assert outcomes(stranger, look, str(file), world) == found


def test_open_folders_and_sockets_are_faults(world: Path, stranger: ProcessPoolExecutor) -> None:
    folder = world / "tmp"
    folder.mkdir()
    folder.chmod(0o777)
    assert outcomes(stranger, look, str(folder), world) == {"list": {"FAULT"}, "write": {"FAULT"}}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
        server.listen()
        assert outcomes(stranger, connect, str(folder / "socket"), world) == {"socket": {"refused"}}
        (folder / "socket").chmod(0o777)
        assert outcomes(stranger, connect, str(folder / "socket"), world) == {"socket": {"FAULT"}}


def test_pages_and_processes_of_others_are_faults(world: Path, stranger: ProcessPoolExecutor) -> None:
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert "FAULT" in outcomes(stranger, ask_pages, str(server.server_port), world)["HTTP"]
        server.shutdown()
    for user, found in ((0, "refused"), (65534, "FAULT")):
        with subprocess.Popen(["sleep", "60"], user=user, env={"PASSWORD": PASSWORD}) as process:
            seen = outcomes(stranger, enter, str(process.pid), world)
            process.kill()
        assert seen["command line"] == {"public"}
        assert found in seen["process"]
