"""Ray's own folder: its sockets need a short path, whatever TMPDIR is."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import ray

from sweeps.cluster.joining import ray_for
from sweeps.search.config import SweepConfig
from sweeps.search.folder import InputError

LONG = "a" * 60  # a socket's path may have 107 bytes, and Ray adds 70
SCRIPT = """
    import sys
    from pathlib import Path
    import ray
    from sweeps.cluster.joining import ray_for
    from sweeps.search.presets import quick

    with ray_for(quick().replace(out=Path(sys.argv[1]))):
        (node,) = ray.nodes()
        print(node["RayletSocketName"])
"""


@pytest.mark.ray
@pytest.mark.slow
def test_ray_starts_where_tmpdir_is_long(tmp_path: Path) -> None:
    """SLURM makes such folders."""
    long = tmp_path / LONG
    long.mkdir()
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "runs")]
    env = os.environ | {"TMPDIR": str(long)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    socket = Path(done.stdout.strip())
    private = Path(*socket.parts[:3])
    assert private.name.startswith("ray-"), socket
    assert not private.exists()


NOBODY = """
    import getpass, os, pwd

    def nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    pwd.getpwuid = nobody
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        os.environ.pop(name, None)
    import sweeps
    from ray import tune

    print(getpass.getuser() == f"uid-{os.getuid()}", os.environ["HOME"])
"""


def test_a_user_without_home_and_name_gets_both_for_as_long_as_it_takes() -> None:
    """As in containers, whose user has no entry in passwd."""
    words = [sys.executable, "-c", textwrap.dedent(NOBODY)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    named, _, home = done.stdout.strip().partition(" ")
    assert named == "True"
    assert not Path(home).exists()


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine with a load of 30, where its node has not answered after 30 s."""

    def times_out(**_: object) -> None:
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "init", times_out)
    config = SweepConfig(name="probe").replace(out=tmp_path, cpus=2)
    with pytest.raises(InputError, match=r"^Ray does not start .*\(The current node timed out during startup\.\)"):
        ray_for(config).__enter__()
    assert "RAY_AUTH_TOKEN" not in os.environ
