"""Download and check the archives of public data sets; they are read in place and never unpacked to disk."""

import hashlib
import http.client
import logging
import shutil
import urllib.request
from dataclasses import dataclass
from io import BufferedRandom, BufferedReader
from pathlib import Path

from trainables.files import replacing
from trainables.locks import file_lock

_TIMEOUT_S = 30.0  # of one socket operation, not of the whole download
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """A file on the web and its checksum."""

    url: str
    md5: str
    """Hexadecimal, as published with the file."""

    @property
    def file_name(self) -> str:
        """The file's name on disk."""
        return self.url.rpartition("/")[2]


ARCHIVES = {
    "cifar10": Archive("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    "cifar100": Archive("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
    "tiny-imagenet": Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
}


def fetch(dataset: str, data_dir: Path) -> Path:
    """Find the archive of a data set in `data_dir`, or download it; check it and return its path.

    Raises:
        ValueError: if it cannot be downloaded, or its checksum is wrong.
    """
    archive = ARCHIVES[dataset]
    path = data_dir / archive.file_name
    with file_lock(data_dir / f".{archive.file_name}.lock"):
        if path.exists():
            with path.open("rb") as file:
                _check(dataset, file, archive, fix=f"delete {path} and run again")
            return path
        with replacing(path, part=path.with_name(path.name + ".part")) as file:
            _download(dataset, archive, file, data_dir)
            _check(dataset, file, archive, fix="run again, or download it by other means")
    return path


def _download(dataset: str, archive: Archive, file: BufferedRandom, data_dir: Path) -> None:
    _log.info("Downloading %s to %s", archive.url, data_dir)
    try:
        with urllib.request.urlopen(archive.url, timeout=_TIMEOUT_S) as answer:
            shutil.copyfileobj(answer, file, 1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(
            f"--dataset {dataset}: cannot download {archive.url} ({error}); "
            f"put the file {archive.file_name} into {data_dir} yourself and run again."
        ) from error


def _check(dataset: str, file: BufferedRandom | BufferedReader, archive: Archive, *, fix: str) -> None:
    file.seek(0)
    md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != archive.md5:
        raise ValueError(f"--dataset {dataset}: {archive.file_name} has checksum md5={md5}, not {archive.md5}; {fix}.")
