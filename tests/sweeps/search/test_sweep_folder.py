import shlex
from pathlib import Path

import pytest

from sweeps import kd_prune
from sweeps.search.folder import typed_command

SCRIPT = kd_prune.__file__


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--preset quick --out /home/me/runs --trials 8", "--preset quick --trials 8"),
        ("--tracking-uri postgresql://me:secret@db/x --address 10.0.0.1:6379 --gpus 4", "--gpus 4"),
        ("--storage=s3://bucket/x --alpha 0:1 --data-dir /data", "--alpha 0:1"),
        ("--dataset folder:/home/me/photos", "--dataset folder:photos"),
        ("--dataset=folder:/home/me/photos --quiet", "--dataset=folder:photos --quiet"),
        ("--unlabeled /home/me/more --quiet", "--unlabeled more --quiet"),
        ("--unlabeled=/home/me/more/ --quiet", "--unlabeled more --quiet"),
        ("--name 'my sweep'", "--name 'my sweep'"),
    ],
)
def test_a_command_is_told_without_the_places_of_its_machine(words: str, told: str) -> None:
    assert typed_command([SCRIPT, *shlex.split(words)]) == f"python sweeps/kd_prune.py {told}"


def test_a_program_that_calls_the_sweep_has_no_command_to_tell(tmp_path: Path) -> None:
    assert typed_command([str(tmp_path / "mine.py"), "--trials", "3"]) is None
