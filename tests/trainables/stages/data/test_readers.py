import hashlib
import io
import os
import pickle
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.config.candidate import DataConfig
from trainables.records.stages import DatasetRecord
from trainables.stages.data.prepared import load, prepare
from trainables.stages.data.sources import downloads
from trainables.stages.data.sources.downloads import Archive


@pytest.mark.parametrize(
    ("name", "hint"), [("cifar-10", "did you mean cifar10"), ("./photos", "did you mean folder:./photos"), ("x", "")]
)
def test_unknown_data_set_lists_the_known_ones(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"--dataset {name}: unknown.*{hint}.* Known: digits, cifar10, .*folder:PATH"):
        prepare(DataConfig(dataset=name), tmp_path)


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which is how CIFAR was published."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2_pickle(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def tar_gz(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def pixel_rows(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(n, 3072), dtype=np.uint8)


def cifar10_members() -> dict[str, bytes]:
    labels = [i % 10 for i in range(20)]
    batches = {f"data_batch_{i}": {b"data": pixel_rows(20, i), b"labels": labels} for i in range(1, 6)}
    batches["test_batch"] = {b"data": pixel_rows(20, 9), b"labels": labels}
    meta = {b"label_names": [f"class{i}".encode() for i in range(10)], b"num_vis": 3072}
    return {f"cifar-10-batches-py/{k}": python2_pickle(v) for k, v in {**batches, "batches.meta": meta}.items()}


def cifar100_members() -> dict[str, bytes]:
    batches = {
        name: {b"data": pixel_rows(200, seed), b"fine_labels": [i % 100 for i in range(200)], b"coarse_labels": [0]}
        for seed, name in enumerate(("train", "test"))
    }
    meta = {b"fine_label_names": [f"fine{i}".encode() for i in range(100)], b"coarse_label_names": []}
    return {f"cifar-100-python/{k}": python2_pickle(v) for k, v in {**batches, "meta": meta}.items()}


def jpeg(shade: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (64, 64), shade if mode == "L" else (shade, shade, shade)).save(file, "JPEG")
    return file.getvalue()


def tiny_zip(path: Path, extra: dict[str, bytes] | None = None) -> None:
    root, wnids = "tiny-imagenet-200", ["n02", "n01"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/wnids.txt", "\n".join(wnids))
        for c, wnid in enumerate(wnids):
            archive.writestr(f"{root}/train/{wnid}/{wnid}_boxes.txt", "")
            for i in range(10):
                name = f"{root}/train/{wnid}/images/{wnid}_{i}.JPEG"
                archive.writestr(name, jpeg(100 * c + i, "L" if i == 3 else "RGB"))
        rows = [f"val_{i}.JPEG\t{wnids[i % 2]}\t0\t0\t62\t62" for i in range(4)]
        archive.writestr(f"{root}/val/val_annotations.txt", "\n".join(rows) + "\n")
        for i in range(4):
            archive.writestr(f"{root}/val/images/val_{i}.JPEG", jpeg(100 * (i % 2)))
        archive.writestr(f"{root}/test/images/test_0.JPEG", jpeg(0))
        for name, content in (extra or {}).items():
            archive.writestr(name, content)


def publish(monkeypatch: pytest.MonkeyPatch, dataset: str, path: Path, url: str = "") -> None:
    """Make `path` the archive of a data set."""
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(downloads.ARCHIVES, dataset, Archive(url or path.as_uri(), md5))


def prepare_archive(dataset: str, data_dir: Path, **changes: object) -> DatasetRecord:
    return prepare(DataConfig(dataset=dataset, val_fraction=0.2, **changes), data_dir)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address of a local server that serves it."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_published_archives_are_the_official_ones() -> None:
    assert {name: archive.file_name for name, archive in downloads.ARCHIVES.items()} == {
        "cifar10": "cifar-10-python.tar.gz",
        "cifar100": "cifar-100-python.tar.gz",
        "tiny-imagenet": "tiny-imagenet-200.zip",
    }


def test_cifar10_is_downloaded_once_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, web: tuple[Path, str]
) -> None:
    folder, address = web
    tar_gz(folder / "c10.tar.gz", cifar10_members())
    publish(monkeypatch, "cifar10", folder / "c10.tar.gz", f"{address}/c10.tar.gz")
    record = prepare_archive("cifar10", tmp_path / "data")
    assert (record.num_train, record.num_val, record.num_test, record.image_size) == (80, 20, 20, 32)
    assert record.class_names[3] == "class3"
    images, labels = load(record, "test")
    assert np.array_equal(images, pixel_rows(20, 9).reshape(20, 3, 32, 32))
    assert labels.tolist() == [i % 10 for i in range(20)]
    assert not list((tmp_path / "data").glob("*.part"))
    (folder / "c10.tar.gz").unlink()
    assert prepare_archive("cifar10", tmp_path / "data", split_seed=1).num_val == 20


def test_cifar100_uses_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar_gz(tmp_path / "c100.tar.gz", cifar100_members())
    publish(monkeypatch, "cifar100", tmp_path / "c100.tar.gz")
    config = DataConfig(dataset="cifar100", val_fraction=0.5)
    record = prepare(config, tmp_path / "data")
    assert (record.num_classes, record.num_train, record.num_val, record.num_test) == (100, 100, 100, 200)
    assert record.class_names[42] == "fine42"


def test_tiny_imagenet_tests_on_its_labelled_validation_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_zip(tmp_path / "tiny.zip")
    publish(monkeypatch, "tiny-imagenet", tmp_path / "tiny.zip")
    record = prepare_archive("tiny-imagenet", tmp_path / "data")
    assert record.class_names == ("n01", "n02")
    assert (record.num_train, record.num_val, record.num_test, record.image_size) == (16, 4, 4, 64)
    images, labels = load(record, "test")
    assert labels.tolist() == [1, 0, 1, 0]
    assert images[:, 0, 0, 0].tolist() == [0, 100, 0, 100]


def test_archive_in_the_data_directory_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar_gz(tmp_path / "c10.tar.gz", cifar10_members())
    publish(monkeypatch, "cifar10", tmp_path / "c10.tar.gz", "http://127.0.0.1:9/c10.tar.gz")
    assert prepare_archive("cifar10", tmp_path).num_train == 80


def test_no_network_names_the_file_and_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(downloads.ARCHIVES, "cifar10", Archive("http://127.0.0.1:9/c10.tar.gz", "0"))
    match = rf"--dataset cifar10: cannot download .* put the file c10\.tar\.gz into {tmp_path} yourself"
    with pytest.raises(ValueError, match=match):
        prepare_archive("cifar10", tmp_path)


def test_missing_page_is_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, web: tuple[Path, str]) -> None:
    monkeypatch.setitem(downloads.ARCHIVES, "cifar10", Archive(f"{web[1]}/c10.tar.gz", "0"))
    with pytest.raises(ValueError, match=r"--dataset cifar10: cannot download .*404"):
        prepare_archive("cifar10", tmp_path)


def test_wrong_checksum_of_a_download_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c10.tar.gz").write_bytes(b"a login page")
    url = (tmp_path / "c10.tar.gz").as_uri()
    monkeypatch.setitem(downloads.ARCHIVES, "cifar10", Archive(url, "c58f"))
    with pytest.raises(ValueError, match=r"--dataset cifar10: c10\.tar\.gz.* has checksum md5=\w{32}, not c58f; run"):
        prepare_archive("cifar10", tmp_path / "data")
    assert not [p for p in (tmp_path / "data").iterdir() if p.is_file() and p.suffix != ".lock"]


def test_wrong_checksum_of_a_file_that_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c10.tar.gz").write_bytes(b"half")
    monkeypatch.setitem(downloads.ARCHIVES, "cifar10", Archive("http://127.0.0.1:9/c10.tar.gz", "c58f"))
    with pytest.raises(ValueError, match=r"md5=\w{32}, not c58f; delete .*c10\.tar\.gz and run again"):
        prepare_archive("cifar10", tmp_path)


class Evil:
    """Creates a file when it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_malicious_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = cifar10_members()
    members["cifar-10-batches-py/test_batch"] = python2_pickle({b"data": Evil(tmp_path / "owned")})
    tar_gz(tmp_path / "c10.tar.gz", members)
    publish(monkeypatch, "cifar10", tmp_path / "c10.tar.gz")
    with pytest.raises(ValueError, match=r"test_batch is not a CIFAR batch: the name \w+\.mkdir in its pickle is refu"):
        prepare_archive("cifar10", tmp_path / "data")
    assert not (tmp_path / "owned").exists()


def test_object_arrays_in_a_pickle_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = cifar10_members()
    members["cifar-10-batches-py/test_batch"] = python2_pickle({b"data": np.array([{}, None])})
    tar_gz(tmp_path / "c10.tar.gz", members)
    publish(monkeypatch, "cifar10", tmp_path / "c10.tar.gz")
    with pytest.raises(ValueError, match="arrays of 'O8' are refused"):
        prepare_archive("cifar10", tmp_path / "data")


def test_archive_members_cannot_leave_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = {"../../evil.JPEG": b"x", "/tmp/evil.JPEG": b"x", "tiny-imagenet-200/train/n01/images/../../evil.JPEG": b"x"}
    tiny_zip(tmp_path / "tiny.zip", evil)
    publish(monkeypatch, "tiny-imagenet", tmp_path / "tiny.zip")
    assert prepare_archive("tiny-imagenet", tmp_path / "a" / "b" / "data").num_test == 4
    assert not list(tmp_path.rglob("evil*"))


def test_link_in_place_of_a_batch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = cifar10_members()
    del members["cifar-10-batches-py/test_batch"]
    tar_gz(tmp_path / "plain.tar.gz", members)
    with tarfile.open(tmp_path / "plain.tar.gz") as old, tarfile.open(tmp_path / "c10.tar.gz", "w:gz") as new:
        for member in old:
            new.addfile(member, old.extractfile(member))
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        new.addfile(link)
    publish(monkeypatch, "cifar10", tmp_path / "c10.tar.gz")
    with pytest.raises(
        ValueError, match=r"--dataset cifar10: no file 'cifar-10-batches-py/test_batch' in c10\.tar\.gz"
    ):
        prepare_archive("cifar10", tmp_path / "data")
