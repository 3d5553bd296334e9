"""Read data sets by name: each reader finds images and labels; decoding comes later."""

import difflib
import io
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainables.config.candidate import DataConfig
from trainables.stages.data.decoding import RawDataset, RawSplit, make_array_split, open_image, to_array
from trainables.stages.data.sources import folders, huggingface
from trainables.stages.data.sources.downloads import ARCHIVES, fetch
from trainables.stages.data.splits import sample_stratified

Reader = Callable[[DataConfig, Path], RawDataset]
# Pixels of a side of a named data set's images, unless `image_size` is given.
OWN_SIZE = {"digits": 32, "cifar10": 32, "cifar100": 32, "tiny-imagenet": 64}


def find_reader(dataset: str) -> Reader:
    """Find the reader of a data set by name.

    Raises:
        ValueError: if no data set has that name.
    """
    if dataset.startswith(folders.PREFIX):
        return folders.read_folder
    if dataset.startswith(huggingface.PREFIX):
        return huggingface.read_huggingface
    if dataset in _READERS:
        return _READERS[dataset]
    close = difflib.get_close_matches(dataset.lower(), _READERS, n=1, cutoff=0.5)
    if "/" in dataset or Path(dataset).is_dir():
        close = [f"{folders.PREFIX}{dataset}"]
    hint = f"; did you mean {close[0]}?" if close else "."
    raise ValueError(f"--dataset {dataset}: unknown{hint} Known: {', '.join(_READERS)}, {folders.PREFIX}PATH, hf:NAME.")


def read_digits(config: DataConfig, data_dir: Path) -> RawDataset:
    """Read scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; a fixed, stratified fifth is the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.repeat(np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None], 3, axis=3)
    own = OWN_SIZE["digits"]
    # resized to their own size first, as training images are decoded, so that all splits are enlarged alike
    if (config.image_size or 0) > own:
        images = np.stack([to_array(Image.fromarray(image), own).transpose(1, 2, 0) for image in images])
    labels = digits.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    test[sample_stratified(labels, round(0.2 * len(labels)), np.random.default_rng(0), spare=1)] = True
    return RawDataset(
        image_size=config.image_size or OWN_SIZE[config.dataset],
        class_names=tuple(str(digit) for digit in range(10)),
        train=make_array_split(images[~test], labels[~test]),
        test=make_array_split(images[test], labels[test]),
    )


def read_cifar10(config: DataConfig, data_dir: Path) -> RawDataset:
    """Read CIFAR-10: 50,000 + 10,000 images of 32 x 32 pixels."""
    train = [f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)]
    return _read_cifar(config, data_dir, train, "cifar-10-batches-py/test_batch", "batches.meta", b"labels")


def read_cifar100(config: DataConfig, data_dir: Path) -> RawDataset:
    """Read CIFAR-100 with its fine labels: 50,000 + 10,000 images of 32 x 32 pixels."""
    return _read_cifar(config, data_dir, ["cifar-100-python/train"], "cifar-100-python/test", "meta", b"fine_labels")


def _read_cifar(
    config: DataConfig, data_dir: Path, train: list[str], test: str, meta: str, labels_key: bytes
) -> RawDataset:
    archive = fetch(config.dataset, data_dir)
    meta = str(PurePosixPath(test).with_name(meta))
    content = _read_tar_members(config.dataset, archive, [*train, test, meta])
    batch = {name: _unpickle(f"{archive.name}/{name}", data) for name, data in content.items()}
    names = batch[meta][b"label_names" if labels_key == b"labels" else b"fine_label_names"]

    def split(members: list[str]) -> RawSplit:
        pixels = np.concatenate([batch[member][b"data"] for member in members])
        labels = np.concatenate([batch[member][labels_key] for member in members]).astype(np.int64)
        return make_array_split(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)

    return RawDataset(
        image_size=config.image_size or OWN_SIZE[config.dataset],
        class_names=tuple(name.decode() for name in names),
        train=split(train),
        test=split([test]),
    )


def _read_tar_members(dataset: str, path: Path, names: list[str]) -> dict[str, bytes]:
    """Read regular files of a tar archive in one pass."""
    # nothing is extracted, so no member can decide where a file is written
    found = {}
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name in names and member.isfile() else None
            if file is not None:
                found[member.name] = file.read()
    missing = [name for name in names if name not in found]
    if missing:
        raise _wrong_archive(dataset, path, missing[0])
    return found


def _wrong_archive(dataset: str, path: Path, member: str) -> ValueError:
    return ValueError(
        f"--dataset {dataset}: no file {member!r} in {path.name}; delete the archive to download it again from "
        f"{ARCHIVES[dataset].url}."
    )


def _unpickle(name: str, content: bytes) -> dict[bytes, Any]:
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{name} is not a CIFAR batch: {error}; delete the archive.") from error
    assert isinstance(batch, dict)
    return {key.encode() if isinstance(key, str) else key: value for key, value in batch.items()}


def _uint8(code: str | bytes, *flags: Any) -> np.dtype[Any]:
    if code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"arrays of {code!r} are refused, only uint8 is expected")
    return np.dtype("u1", *flags)


def _empty(kind: None, shape: tuple[int, ...], code: bytes) -> NDArray[np.uint8]:
    return np.empty(0, dtype=np.uint8)  # as numpy's `_reconstruct` returns; the pickle then sets shape and bytes


class _ArrayUnpickler(pickle.Unpickler):
    """Read dicts, lists, strings and uint8 arrays; refuse every other name in the pickle, so that no code can run."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _empty,
            ("numpy._core.multiarray", "_reconstruct"): _empty,
            ("numpy", "ndarray"): None,  # an argument of `_reconstruct` that `_empty` ignores
            ("numpy", "dtype"): _uint8,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"the name {module}.{name} in its pickle is refused")
        return known[module, name]


def read_tiny_imagenet(config: DataConfig, data_dir: Path) -> RawDataset:
    """Read Tiny ImageNet: 100,000 images of 64 x 64 pixels in 200 classes; its labelled `val` is our test split."""
    path = fetch(config.dataset, data_dir)
    archive = zipfile.ZipFile(path)
    root = "tiny-imagenet-200"
    pattern = re.compile(rf"{root}/train/(n\d+)/images/[^/]+\.JPEG")
    train = [(name, match[1]) for name in archive.namelist() if (match := pattern.fullmatch(name))]
    try:
        rows = archive.read(f"{root}/val/val_annotations.txt").decode().splitlines()
    except KeyError as error:
        raise _wrong_archive(config.dataset, path, f"{root}/val/val_annotations.txt") from error
    test = [(f"{root}/val/images/{file}", wnid) for file, wnid, *_ in (row.split("\t") for row in rows)]
    absent = sorted({name for name, _ in test} - set(archive.namelist()))
    if absent or not train:
        raise _wrong_archive(config.dataset, path, absent[0] if absent else f"{root}/train/*/images/*.JPEG")
    class_names = tuple(sorted({wnid for _, wnid in train}))
    label_of = {wnid: label for label, wnid in enumerate(class_names)}

    def split(rows: list[tuple[str, str]]) -> RawSplit:
        names = [name for name, _ in sorted(rows)]
        labels = np.array([label_of[wnid] for _, wnid in sorted(rows)], dtype=np.int64)
        return RawSplit(labels, names, lambda i: open_image(archive.read(names[i])))

    return RawDataset(
        image_size=config.image_size or OWN_SIZE[config.dataset],
        class_names=class_names,
        train=split(train),
        test=split(test),
    )


_READERS: dict[str, Reader] = {
    "digits": read_digits,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "tiny-imagenet": read_tiny_imagenet,
}
