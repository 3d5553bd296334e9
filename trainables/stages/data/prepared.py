"""A data set, decoded once per node into memory-mapped arrays that all trials share."""

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
from trainables.stages.data.readers import OWN_SIZE, Reader, reader_of
from trainables.stages.data.splits import cut_validation, limit_training

DECODER_VERSION = 1
"""Counts up when the same files would decode to other pixels or another split."""
_RECORD = "dataset.json"
_prepared: dict[tuple[DataConfig, Path], DatasetRecord] = {}
_CHUNK = 4096  # images a step of the statistics: bounds their memory on any data set


def prepare(config: DataConfig, data_dir: Path) -> DatasetRecord:
    """Images of `config` as arrays below `data_dir`: found, or downloaded and decoded.

    Several processes may call it at once: one decodes, the others wait. What is found costs milliseconds; for
    `folder:PATH` that includes one look at the size and time of every file.

    Raises:
        ValueError: one line that names the flag, its value and the fix.
    """
    reader = reader_of(config.dataset)
    if config.split_seed < 0:
        raise ValueError(f"--split-seed {config.split_seed}: must be 0 or more.")
    data_dir = data_dir.resolve()
    folder = data_dir / "decoded" / _digest(config)
    if not (folder / _RECORD).exists():
        with file_lock(folder.with_name(f"{folder.name}.lock")):
            if not (folder / _RECORD).exists():
                _decode(config, reader, data_dir, folder)
    return _read_record(folder)


def remembered(config: DataConfig, data_dir: Path) -> DatasetRecord:
    """`prepare`, once a process: the trials of a sweep share its images, and 60,000 files take a second to look at."""
    key = (config, data_dir.resolve())
    if key not in _prepared or not (_prepared[key].folder / _RECORD).exists():
        _prepared[key] = prepare(config, data_dir)
    return _prepared[key]


def load(record: DatasetRecord, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (uint8, N3HW) and labels (int64, N) of `train`, `val` or `test`, memory-mapped and read-only.

    H = W = image_size, but training images of a named data set that are to be enlarged lie there in their own size:
    CIFAR-10 at 224 would take 7.5 GB, and is scaled on the device (`trainables.stages.data.augment.views`).
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"`split` must be one of train, val, test, but got {split!r}.")
    return _open(record.folder, split)


def public_name(dataset: str) -> str:
    """The data set's name without local paths: `folder:photos` for `folder:/home/me/photos`."""
    if dataset.startswith(folders.PREFIX):
        return folders.PREFIX + folders.folder_of(dataset).name
    return dataset


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
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed; the lock is ours
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
    """Where each split comes from, and which of its images."""
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
    mean, std = _statistics(arrays["train"][0])
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


def _statistics(images_N3HW: NDArray[np.uint8]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation a channel on the scale [0, 1], from histograms: exact, in constant memory."""
    levels = np.arange(256) / 255
    histogram = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(images_N3HW), _CHUNK):
        for channel in range(3):
            pixels = images_N3HW[start : start + _CHUNK, channel].ravel()
            histogram[channel] += np.bincount(pixels, minlength=256)
    weights = histogram / histogram.sum(axis=1, keepdims=True)
    mean = weights @ levels
    variance = (weights * (levels - mean[:, None]) ** 2).sum(axis=1)
    # One grey level at least: a constant channel (all images black, say) must not divide by zero later.
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return _triple(mean), _triple(std)


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _read_record(folder: Path) -> DatasetRecord:
    path = folder / _RECORD
    return encoding.decode(DatasetRecord, encoding.read_json(path), where=path, extra={"folder": folder})
