"""What a sweep opens to others: nothing, unless it joins a cluster that somebody has set up otherwise."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = """
    import http.client, json, os, subprocess, sys, urllib.request
    from pathlib import Path
    import ray
    from sweeps.cluster.joining import ray_for
    from sweeps.search.presets import quick

    ATTACK = "from ray._raylet import GcsClient; GcsClient(address='{}').internal_kv_keys(b'', None, 5)"

    def children(pid):
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found + [deep for child in found for deep in children(child)]

    def listening():
        inodes = set()
        for pid in [os.getpid(), *children(os.getpid())]:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    inodes.add(os.readlink(link))
                except OSError:
                    continue
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                    yield fields[1].split(":")

    def serves(port):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).status
        except (OSError, http.client.HTTPException) as error:  # HTTPError is an OSError: 401, 404
            return str(error)

    def connects(token):
        # as another user has it: the address, which every user can see, and an environment of their own
        settings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
        words = [sys.executable, "-c", ATTACK.format(ray.get_runtime_context().gcs_address)]
        done = subprocess.run(words, env=settings, capture_output=True, text=True)
        if done.returncode == 0:
            return "connected"
        return "InvalidAuthToken" if "InvalidAuthToken" in done.stderr else done.stderr

    before = dict(os.environ)
    with ray_for(quick().replace(out=Path(sys.argv[1]))):
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        seen = {"task": ray.get(ray.remote(num_cpus=0)(lambda: os.getuid()).remote())}
        ports = list(listening())
        seen |= {"listening": [address for address, _ in ports], "pages": [serves(int(port, 16)) for _, port in ports]}
        seen |= {name: connects(token) for name, token in
                 (("none", ""), ("wrong", "0" * 64), ("right", os.environ["RAY_AUTH_TOKEN"]))}
        seen["entered by others"] = all(folder.stat().st_mode & 0o001 for folder in session.parents)
    seen["left"] = [str(session.parents[1])] if session.parents[1].exists() else []
    seen["settings"] = {name for name in before | os.environ if before.get(name) != os.environ.get(name)} & {
        "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    print(json.dumps(seen, default=list))
"""
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process saw of the Ray that it had started, and another one of the same machine tried."""
    if not Path("/proc/net/tcp").exists():
        pytest.skip("listening sockets are read from /proc")
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path_factory.mktemp("out"))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_local_ray_listens_on_loopback_alone(seen: dict[str, Any]) -> None:
    assert len(seen["listening"]) >= 3  # GCS, raylet, object manager at the least
    assert set(seen["listening"]) <= LOOPBACK


def test_a_local_ray_shows_its_metrics_to_nobody(seen: dict[str, Any]) -> None:
    assert 200 not in seen["pages"]  # the agent that `ray[default]` brings would serve them on a port without a token


def test_nobody_without_the_token_of_this_sweep_connects_to_its_ray(seen: dict[str, Any]) -> None:
    assert (seen["none"], seen["wrong"]) == ("InvalidAuthToken", "InvalidAuthToken")
    assert seen["right"] == "connected"  # so that it was the token that the others lacked
    assert isinstance(seen["task"], int)


def test_nobody_else_enters_the_folder_of_its_sockets_and_logs(seen: dict[str, Any]) -> None:
    assert not seen["entered by others"]
    assert seen["left"] == []
    assert seen["settings"] == []  # a cluster that is joined later is asked with the user's own
