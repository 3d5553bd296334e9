"""What is made wrong before a command of `faults.py` runs: each takes the case's own folder."""

import fcntl
import hashlib
import importlib
import io
import json
import os
import pickle
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from sweeps.search.presets import quick
from trainables.records.encoding import to_json
from trainables.stages.data.sources import downloads

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


def in_black(tmp: Path) -> None:
    """TMP/photos: all pixels are 0."""
    photos()(tmp)
    for path in (tmp / "photos").rglob("*.png"):
        Image.new("L", (16, 16)).save(path)


def latin_1(tmp: Path) -> None:
    """TMP/photos: a class folder whose name is no UTF-8."""
    photos()(tmp)
    (tmp / "photos" / "train" / "cat").rename(tmp / "photos" / "train" / os.fsdecode(b"caf\xe9"))


def network(body: str) -> Prepare:
    """TMP/photos, and `odd:Net` on the path, with this forward."""

    def prepare(tmp: Path) -> None:
        photos()(tmp)
        head = "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self, num_classes):\n"
        code = f"{head}        super().__init__(768, num_classes)\n    def forward(self, x):\n        {body}\n"
        (tmp / "odd.py").write_text(code)
        sys.modules.pop("odd", None)
        sys.path.insert(0, str(tmp))
        importlib.invalidate_caches()

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


def with_a_result(tmp: Path) -> None:
    """A store with a result that no sweep is known to need."""
    folder = tmp / "runs" / "store" / "student" / ("0" * 24)
    files = {"record.json": b"{}"}
    entries = {name: {"sha256": hashlib.sha256(text).hexdigest(), "size": len(text)} for name, text in files.items()}
    manifest = {"key": f"student/{folder.name}", "version": 1, "seconds": 1.0, "reports": 1, "created": 0.0}
    a_store(tmp)
    for name, text in {**files, "manifest.json": json.dumps({**manifest, "files": entries, "format": 2})}.items():
        written(f"runs/store/student/{folder.name}/{name}", text)(tmp)


def used_elsewhere(tmp: Path) -> None:
    """That store, and a sweep on another machine that uses it."""
    with_a_result(tmp)
    user = {"sweep": "night", "sweep_id": "x", "folder": "/home/them/runs/sweeps/night"}
    written("runs/store/users/0.json", json.dumps(user))(tmp)


def postscript(tmp: Path) -> None:
    """A picture that would start Ghostscript."""
    photos()(tmp)
    (tmp / "photos" / "test" / "dog" / "3.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")


def one_that_needs(tmp: Path) -> None:
    """A sweep whose teacher needs a result of that store."""
    with_a_result(tmp)
    row = {"status": "finished", "stage": "teacher", "keys": ["teacher/" + "1" * 24]}
    written("runs/sweeps/mine/teacher/record.json", json.dumps(row))(tmp)


a_store = written("runs/store/store.json", '{"format": 2}')
