import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps import kd_prune
from sweeps.search.folder import InputError, check_identity, typed_command, write_sweep_json
from sweeps.search.presets import quick
from tests.sweeps.search.test_rewriting import IMAGES

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


@pytest.mark.parametrize("damage", ["", "{", "null", "[1]", '{"config": 1}', "[" * 100_000])
def test_a_damaged_description_is_written_again(tmp_path: Path, damage: str) -> None:
    config = quick().replace(name="night", out=tmp_path)
    config.folder.mkdir(parents=True)
    teacher = SimpleNamespace(metrics={"size_bytes": 1.0})
    write_sweep_json(config, teacher, IMAGES)
    path = config.folder / "sweep.json"
    before = json.loads(path.read_text())
    path.write_text(damage)
    write_sweep_json(config, teacher, IMAGES)
    assert json.loads(path.read_text()) == before
    assert path.with_name("sweep.json.corrupt-1").read_text() == damage


@pytest.mark.parametrize(
    "damage", ["", "{", "null", "[1]", '{"settings": 1}', '{"sweep_id": "x", "settings": {"base": 1}}', "[" * 100_000]
)
def test_a_damaged_identity_is_one_line_that_names_the_file(tmp_path: Path, damage: str) -> None:
    config = quick().replace(name="night", out=tmp_path)
    config.folder.mkdir(parents=True)
    check_identity(config, IMAGES)
    (config.folder / "identity.json").write_text(damage)
    with pytest.raises(InputError, match=r"--name night: .*identity\.json cannot be read .*; restore it, or take"):
        check_identity(config, IMAGES)
