"""Ray's own folder: its sockets need a short path, whatever TMPDIR is."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sweeps.cluster.joining import LONGEST_TMPDIR

SCRIPT = """
    import sys
    from pathlib import Path
    import ray
    from sweeps.cluster.joining import ray_for
    from sweeps.search.presets import quick

    with ray_for(quick().replace(out=Path(sys.argv[1]))):
        print(len(ray.nodes()))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_ray_starts_where_tmpdir_is_long(tmp_path: Path) -> None:
    """SLURM makes such folders."""
    long = tmp_path / ("a" * LONGEST_TMPDIR)
    long.mkdir()
    before = set(Path("/tmp").glob("ray-*"))
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "runs")]
    env = os.environ | {"TMPDIR": str(long)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stdout + done.stderr
    assert set(Path("/tmp").glob("ray-*")) <= before
