"""The user's modules: they hide none of ours, ours hide none of theirs, and what they print or end is told apart."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on PYTHONPATH with modules of our names, and some that do what modules may do."""
    root = tmp_path_factory.mktemp("theirs")
    for package in ("sweeps", "search", "trainables"):
        (root / package).mkdir()
        (root / package / "__init__.py").touch()
    (root / "analysis.py").write_text("raise RuntimeError('not ours')")
    (root / "search" / "nets.py").write_text("other = 1")
    (root / "exits.py").write_text("print('hello')\nimport sys\nsys.exit(0)\n")
    return root


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("search.nets:net", "'search.nets' has no function 'net'"),
        ("analysis:net", "'analysis' is a module of this tool; give yours another name"),
        ("exits:net", "cannot import 'exits' (SystemExit: 0, in line 3 of"),
    ],
)
def test_a_users_module_is_found_or_refused_by_name(model: str, said: str, theirs: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(REPO / "sweeps" / "kd_prune.py"), "--preset", "quick", "--json", "--student-model"]
    env = os.environ | {"PYTHONPATH": str(theirs)}
    done = subprocess.run([*words, model], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert f"kd_prune.py: --student-model: Model '{model}': {said}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
