"""Decode a data set, once per node, into memory-mapped arrays that all trials share."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainables.config.candidate import DataConfig
from trainables.files import write_text
from trainables.locks import file_lock
from trainables.records import encoding
from trainables.records.stages import DatasetRecord
from trainables.stages.data import folders
from trainables.stages.data.decoding import RawDataset, RawSplit, decode
from trainables.stages.data.readers import OWN_SIZE, Reader, find_reader
from trainables.stages.data.splits import cut_validation, limit_training

DECODER_VERSION = 2  # to be incremented when the same files would decode to other pixels or another split
_RECORD = "dataset.json"
_prepared: dict[tuple[DataConfig, Path], DatasetRecord] = {}
_LEAST_STD = 1 / 255
_CHUNK = 4096  # images per step of the statistics: bounds their memory on any data set
_Triple = tuple[float, float, float]
"""One number each for R, G and B."""


def prepare(config: DataConfig, data_dir: Path) -> DatasetRecord:
    """Find the decoded images of `config` below `data_dir`, or download and decode them.

    Several processes may call this at once: one decodes, the others wait. Finding decoded images takes milliseconds,
    for `folder:PATH` longer: size and time of every file are compared.

    Raises:
        ValueError: if the images cannot be prepared; one line that names the flag, its value and the fix.
    """
    reader = find_reader(config.dataset)
    if config.split_seed < 0:
        raise ValueError(f"--split-seed {config.split_seed}: must be 0 or more.")
    data_dir = data_dir.resolve()
    folder = data_dir / "decoded" / _digest(config)
    if not (folder / _RECORD).exists():
        with file_lock(folder.with_name(f"{folder.name}.lock")):
            if not (folder / _RECORD).exists():
                _decode(config, reader, data_dir, folder)
    return _read_record(folder)


def prepare_once(config: DataConfig, data_dir: Path) -> DatasetRecord:
    """Call `prepare` once per process: trials of a sweep share the images, and checking 60,000 files takes a second."""
    key = (config, data_dir.resolve())
    if key not in _prepared or not (_prepared[key].folder / _RECORD).exists():
        _prepared[key] = prepare(config, data_dir)
    return _prepared[key]


def load(record: DatasetRecord, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Load images (uint8, N3HW) and labels (int64, N) of `train`, `val` or `test`, memory-mapped and read-only.

    H = W = image_size, except for training images of a named data set that `image_size` enlarges. They keep their
    own size and are resized on the device (`trainables.stages.data.augment.views`): CIFAR-10 at 224 would take 7.5 GB.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"`split` must be one of train, val, test, but got {split!r}.")
    return _open(record.folder, split)


def public_name(dataset: str) -> str:
    """Return the data set's name without local paths: `folder:photos` for `folder:/home/me/photos`."""
    if dataset.startswith(folders.PREFIX):
        return folders.PREFIX + folders.folder_of(dataset).name
    return dataset


def absolute(config: DataConfig) -> DataConfig:
    """The configuration with the absolute path of a folder data set."""
    if not config.dataset.startswith(folders.PREFIX):
        return config
    return dataclasses.replace(config, dataset=f"{folders.PREFIX}{folders.folder_of(config.dataset)}")


def left_out(dataset: str) -> str | None:
    """Say which files of a folder data set are not read; None if all are, or if it is no folder."""
    return folders.left_out(dataset) if dataset.startswith(folders.PREFIX) else None


def _open(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images = np.load(folder / f"{split}_images.npy", mmap_mode="r")
    return images, np.load(folder / f"{split}_labels.npy", mmap_mode="r")


def _digest(config: DataConfig) -> str:
    is_folder = config.dataset.startswith(folders.PREFIX)
    source = folders.signature(config.dataset) if is_folder else config.dataset
    key = dataclasses.asdict(config) | {"dataset": source, "version": DECODER_VERSION}
    key |= {"train_size": OWN_SIZE[config.dataset]} if _is_enlarged(config) else {}
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _is_enlarged(config: DataConfig) -> bool:
    return config.dataset in OWN_SIZE and (config.image_size or 0) > OWN_SIZE[config.dataset]


def _decode(config: DataConfig, reader: Reader, data_dir: Path, folder: Path) -> None:
    raw = reader(config, data_dir)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a killed process: no other one can hold the lock now
    part.mkdir()
    try:
        for name, (split, index) in _split(config, raw).items():
            size = OWN_SIZE[config.dataset] if name == "train" and _is_enlarged(config) else raw.image_size
            decode(config.dataset, split, index, size, part / f"{name}_images.npy")
            np.save(part / f"{name}_labels.npy", split.labels[index])
        record = dataclasses.asdict(_describe(config, raw, part))
        del record["folder"]  # the data directory may move
        write_text(part / _RECORD, json.dumps(record, indent=1))
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _split(config: DataConfig, raw: RawDataset) -> dict[str, tuple[RawSplit, NDArray[np.int64]]]:
    """Choose, for each split, the raw split and the positions of its images there."""
    if raw.val is None:
        train, val = cut_validation(raw.train.labels, raw.class_names, config)
        val_from = raw.train
    else:
        train, val = np.arange(len(raw.train.labels)), np.arange(len(raw.val.labels))
        val_from = raw.val
    train = limit_training(raw.train.labels, train, len(raw.class_names), config)
    return {"train": (raw.train, train), "val": (val_from, val), "test": (raw.test, np.arange(len(raw.test.labels)))}


def _describe(config: DataConfig, raw: RawDataset, folder: Path) -> DatasetRecord:
    arrays = {split: _open(folder, split) for split in ("train", "val", "test")}
    digest = hashlib.sha256(json.dumps([raw.class_names, raw.image_size]).encode())
    for split, (images, labels) in arrays.items():
        digest.update(f"{split} {images.shape}".encode())
        digest.update(images.data)
        digest.update(labels.data)
    mean, std = _compute_statistics(arrays["train"][0])
    if max(std) <= _LEAST_STD:
        colour = tuple(round(255 * value) for value in mean)
        raise ValueError(
            f"--dataset {config.dataset}: all training images come in as one colour, RGB {colour}; convert them to"
            " 8-bit PNG or JPEG."
        )
    return DatasetRecord(
        name=public_name(config.dataset),
        folder=folder,
        fingerprint=digest.hexdigest(),
        class_names=raw.class_names,
        image_size=raw.image_size,
        num_train=len(arrays["train"][1]),
        num_val=len(arrays["val"][1]),
        num_test=len(arrays["test"][1]),
        mean=mean,
        std=std,
    )


def _compute_statistics(images_N3HW: NDArray[np.uint8]) -> tuple[_Triple, _Triple]:
    """Compute mean and standard deviation per channel on the scale [0, 1], from histograms: exact, constant memory."""
    levels = np.arange(256) / 255
    histogram = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(images_N3HW), _CHUNK):
        for channel in range(3):
            pixels = images_N3HW[start : start + _CHUNK, channel].ravel()
            histogram[channel] += np.bincount(pixels, minlength=256)
    weights = histogram / histogram.sum(axis=1, keepdims=True)
    mean = weights @ levels
    variance = (weights * (levels - mean[:, None]) ** 2).sum(axis=1)
    # at least one grey level, so that normalising a constant channel (all images black) does not divide by zero
    std = np.maximum(np.sqrt(variance), _LEAST_STD)
    return _triple(mean), _triple(std)


def _triple(values: NDArray[np.float64]) -> _Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _read_record(folder: Path) -> DatasetRecord:
    path = folder / _RECORD
    return encoding.decode(DatasetRecord, encoding.read_json(path), where=path, extra={"folder": folder})
