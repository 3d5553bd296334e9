"""What makes a folder OUT/sweeps/NAME one sweep: one driver at a time, one identity, one description."""

import fcntl
import json
import subprocess
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from sweeps.config import SweepConfig
from sweeps.objectives import DIRECTIONS, UNITS, reference_point
from trainables.records import DatasetRecord, TrialRecord, to_json, write_text


class InputError(ValueError):
    """The sweep cannot run as it was asked for; the message is for its user."""


@contextmanager
def sole_driver(folder: Path) -> Generator[None, None, None]:
    """Hold the sweep's lock: two drivers on one study would take each other's trials for orphans.

    Raises:
        InputError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "driver.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"--name {folder.name}: another process runs this sweep; wait for it or take another --name."
            ) from None
        yield


def check_identity(config: SweepConfig, dataset: DatasetRecord) -> str:
    """The sweep's id, new for a new folder. A name stands for one search on one data set: others would mix its numbers.

    Raises:
        InputError: if the folder belongs to a sweep with other settings or images.
    """
    path = config.folder / "identity.json"
    mine = json.loads(to_json(config.identity() | {"images": {"fingerprint of the images": dataset.fingerprint[:16]}}))
    if not path.exists():
        sweep_id = uuid.uuid4().hex
        write_text(path, to_json({"sweep_id": sweep_id, "settings": mine}))
        return sweep_id
    stored = json.loads(path.read_text(encoding="utf-8"))
    theirs = stored.get("settings", {})
    for part in mine | theirs:
        old, new = theirs.get(part, {}), mine.get(part, {})
        for name in old | new:
            if old.get(name) != new.get(name):
                raise InputError(
                    f"--name {config.name}: that sweep was made with {name}={old.get(name)}, not {new.get(name)};"
                    " take another --name."
                )
    return str(stored["sweep_id"])


def write_sweep_json(config: SweepConfig, teacher: TrialRecord, dataset: DatasetRecord) -> None:
    """Describe the sweep for whoever reads its records; the reference point is fixed here, before the first trial."""
    path = config.folder / "sweep.json"
    if path.exists():
        return
    settings = config.identity()
    settings["base"]["dataset"] = dataset.name
    content = {
        "name": config.name,
        "directions": DIRECTIONS,
        "units": UNITS,
        "reference_point": reference_point(dataset.num_classes),
        "teacher": dict(teacher.metrics),
        "config": settings,
        "versions": versions(),
        "commit": _commit(),
    }
    write_text(path, to_json(content))


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("torch", "torchvision", "torch-pruning", "onnx", "ray", "optuna", "mlflow", "numpy")
    return {name: version(name) for name in names}


def _commit() -> str | None:
    """The commit of the code that runs, where it runs from a git checkout."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
