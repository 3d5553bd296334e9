"""Nobody asked for traffic: a local sweep talks to loopback alone, its Python, Ray's own processes and ONNX Runtime."""

import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sweeps.test_kd_prune import REPO

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# In every Python process of the sweep, also those of Ray: connections and look-ups of names that do not stay here.
WATCH = """
    import os, sys

    def watch(event, args):
        if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
            where = args[1] if event != "socket.getaddrinfo" else args
            if isinstance(where, tuple) and str(where[0]) not in ("127.0.0.1", "::1", "localhost", "None", "0.0.0.0"):
                with open(os.environ["SOCKETS_SEEN"], "a") as file:
                    file.write(f"{event} {where[0]} {sys.argv[:1]}\\n")

    sys.addaudithook(watch)
"""


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy that leads nowhere, and what was asked of it: native code of ONNX Runtime uses it, too."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed: the test is over
                    return
                with connection:
                    asked.append(connection.recv(200).decode(errors="replace").partition("\r\n")[0])

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked


def test_a_local_sweep_talks_to_loopback_alone(proxy: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = proxy
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(WATCH))
    seen = tmp_path / "seen"
    seen.touch()
    told = {"PYTHONPATH": str(tmp_path), "SOCKETS_SEEN": str(seen), "no_proxy": "127.0.0.1,localhost"}
    told |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"), address)
    # without pytest's and CI's marks, by which MLflow knows not to send
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI", "GITHUB", "RAY"))}
    for name in ("MLFLOW_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY", "DO_NOT_TRACK", "NO_PROXY"):
        kept.pop(name, None)
    settings = "--preset quick --trials 1 --teacher-epochs 1 --student-epochs 1 --recovery-epochs 0"
    settings += " --latency-seconds 0.2 --latency-max-attempts 1"
    out = tmp_path / "runs [red]x :smile: 100%"  # such folders are printed as they are
    words = [sys.executable, str(REPO / "sweeps" / "kd_prune.py"), *settings.split(), "--out", str(out)]
    done = subprocess.run(
        [*words, "--data-dir", str(tmp_path / "data")], env=kept | told, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert asked == []
    assert seen.read_text() == ""
    (page,) = out.glob("sweeps/*/front/pareto.html")
    assert f"Front: {page}" in done.stdout
    assert f"{next(out.glob('sweeps/*/trials/00000'))}/model.onnx" in done.stdout
