"""What a sweep opens to others: nothing but loopback, unless it joins a cluster that somebody has set up otherwise."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = """
    import dataclasses, os, sys
    from pathlib import Path
    from sweeps.cluster.joining import ray_for
    from sweeps.search.presets import quick

    def children(pid):
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found + [deep for child in found for deep in children(child)]

    with ray_for(quick().replace(out=Path(sys.argv[1]))):
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
                    print(fields[1].partition(":")[0])
"""
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="listening sockets are read from /proc")
def test_a_local_ray_listens_on_loopback_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    addresses = done.stdout.split()
    assert len(addresses) >= 3  # GCS, raylet, object manager at the least
    assert set(addresses) <= LOOPBACK, done.stdout
