"""What is made wrong before a command of `faults.py` runs: each takes the case's own folder."""

import fcntl
import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from sweeps.search.presets import quick
from trainables.records.encoding import to_json
from trainables.stages.data import downloads

Prepare = Callable[[Path], None]


def photos(**changes: tuple[str, ...]) -> Prepare:
    """TMP/photos: cats and dogs; `train` and `test` take other classes."""

    def prepare(tmp: Path) -> None:
        for split in ("train", "test"):
            for name in changes.get(split, ("cat", "dog")):
                (tmp / "photos" / split / name).mkdir(parents=True)
                for i in range(4):
                    Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp / "photos" / split / name / f"{i}.png")

    return prepare


def and_then(first: Prepare, second: Prepare) -> Prepare:
    def prepare(tmp: Path) -> None:
        first(tmp)
        second(tmp)

    return prepare


def written(name: str, content: bytes | str) -> Prepare:
    """TMP/NAME with this content."""

    def prepare(tmp: Path) -> None:
        path = tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return prepare


def made(**settings: object) -> Prepare:
    """TMP/runs/sweeps/mine as an earlier `--preset quick` left it."""
    return written(
        "runs/sweeps/mine/identity.json", to_json({"sweep_id": "x", "settings": quick().identity() | settings})
    )


def locked(tmp: Path) -> None:
    """Another driver holds the sweep's lock, until this process ends."""
    path = tmp / "runs" / "sweeps" / "mine" / "driver.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    opened.append(file)


opened: list[io.IOBase] = []


def hostile_archive(tmp: Path) -> None:
    """A CIFAR-10 whose pickle would run a command."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return (eval, ("print('run by a pickle')",))

    (tmp / "data").mkdir()
    with tarfile.open(tmp / "data" / "cifar-10-python.tar.gz", "w:gz") as tar:
        content = pickle.dumps({b"data": Evil(), b"labels": [0]})
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    digest = hashlib.md5((tmp / "data" / "cifar-10-python.tar.gz").read_bytes()).hexdigest()
    downloads.ARCHIVES["cifar10"] = downloads.Archive(downloads.ARCHIVES["cifar10"].url, digest)


def with_a_password(tmp: Path) -> None:
    """A sweep that has a record, whose driver is gone, delivered to an address with a password."""
    folder = tmp / "runs" / "sweeps" / "mine"
    written("runs/sweeps/mine/sweep.json", to_json({"teacher": {"size_bytes": 1}, "config": {"rates": {}}}))(tmp)
    where = {"uri": "postgresql://me:***@db/x", "experiment": "e", "sweep": "mine", "sweep_id": "x"}
    (folder / "tracking.json").write_text(json.dumps(where))


a_store = written("runs/store/store.json", '{"format": 2}')
