"""Decode a data set, once per node, into memory-mapped arrays that all trials share."""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainables.config.candidate import DataConfig
from trainables.config.training import OWN_STATISTICS, Triple, normalisation
from trainables.files import sync, write_text
from trainables.locks import file_lock
from trainables.records import encoding
from trainables.records.stages import DatasetRecord
from trainables.stages.data.decoding import ARRAY_ERRORS, RawDataset, RawSplit, create, decode
from trainables.stages.data.sources import folders
from trainables.stages.data.sources.names import absolute as absolute
from trainables.stages.data.sources.names import is_folder as is_folder
from trainables.stages.data.sources.names import left_out as left_out
from trainables.stages.data.sources.names import public_name as public_name
from trainables.stages.data.sources.names import signature
from trainables.stages.data.sources.readers import OWN_SIZE, Reader, find_reader
from trainables.stages.data.splits import cut_validation, limit_training

DECODER_VERSION = 2  # to be incremented when the same files would decode to other pixels or another split
_RECORD = "dataset.json"
_FILES = "files"  # in the record, beside the fields of `DatasetRecord`: size and modification time of the arrays
_SPLITS = ("train", "val", "test")
_STUDENTS_IMAGES = "students_images.npy"
_OF_UNLABELED = ("unlabeled", "num_unlabeled", "unlabeled_folder")  # fields that are no part of `_RECORD`
log = logging.getLogger(__name__)
_prepared: dict[tuple[DataConfig, Path], DatasetRecord] = {}
_LEAST_STD = 1 / 255
_CHUNK = 4096  # images per step of the statistics: bounds their memory on any data set
_Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images and labels of a split."""


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
    labelled = dataclasses.replace(config, unlabeled=None, normalize=OWN_STATISTICS)
    folder = data_dir / "decoded" / _digest(labelled)
    _make_once(folder, lambda part: _decode(labelled, reader, data_dir, part), _is_whole)
    record = _read(folder)[0]
    if config.unlabeled is not None:
        record = _add_unlabeled(record, config.unlabeled)
    return _normalise(record, config.normalize)


def prepare_once(config: DataConfig, data_dir: Path) -> DatasetRecord:
    """Call `prepare` once per process: trials of a sweep share the images, and checking 60,000 files takes a second."""
    key = (config, data_dir.resolve())
    there = _prepared.get(key)
    more = None if there is None else there.unlabeled_folder
    if there is None or not _is_whole(there.folder) or (more is not None and not _is_unchanged(more)):
        _prepared[key] = prepare(config, data_dir)
    return _prepared[key]


def load(record: DatasetRecord, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Load images (uint8, N3HW) and labels (int64, N) of `train`, `val` or `test`, memory-mapped and read-only.

    H = W = image_size, except for training images of a named data set that `image_size` enlarges. They keep their
    own size and are resized on the device (`trainables.stages.data.augment.views`): CIFAR-10 at 224 would take 7.5 GB.
    """
    if split not in _SPLITS:
        raise ValueError(f"`split` must be one of train, val, test, but got {split!r}.")
    return _open(record.folder, split)


def load_for_students(record: DatasetRecord) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Load what students learn: the training split as `load` gives it, then the images without labels, theirs being -1.

    The images are memory-mapped and read-only.
    """
    images, labels = load(record, "train")
    if record.unlabeled_folder is None:
        return images, labels
    images = np.load(record.unlabeled_folder / _STUDENTS_IMAGES, mmap_mode="r")
    return images, np.concatenate([labels, np.full(record.num_unlabeled, -1)])


def _open(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images = np.load(folder / f"{split}_images.npy", mmap_mode="r")
    return images, np.load(folder / f"{split}_labels.npy", mmap_mode="r")


def _digest(config: DataConfig) -> str:
    key = dataclasses.asdict(config) | {"dataset": signature(config.dataset), "version": DECODER_VERSION}
    del key["unlabeled"], key["normalize"]  # the labelled images are the same, whatever these are
    key |= {"train_size": OWN_SIZE[config.dataset]} if _is_enlarged(config) else {}
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _is_enlarged(config: DataConfig) -> bool:
    return config.dataset in OWN_SIZE and (config.image_size or 0) > OWN_SIZE[config.dataset]


def _make_once(folder: Path, make: Callable[[Path], None], is_whole: Callable[[Path], bool]) -> None:
    """Make a folder with a record in it unless it is there and whole: in one process, under another name until then."""
    if is_whole(folder):
        return
    with file_lock(folder.with_name(f"{folder.name}.lock")):
        if is_whole(folder):
            return
        if folder.exists():
            log.warning("%s is damaged: its images are decoded again.", folder)
            shutil.rmtree(folder)
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # left by a killed process: no other one can hold the lock now
        part.mkdir()
        try:
            make(part)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _write_record(part: Path, row: Mapping[str, object]) -> None:
    """Write the record of finished arrays, which promises their contents, also after a power loss."""
    for path in part.iterdir():
        sync(path)
    write_text(part / _RECORD, json.dumps({**row, _FILES: _stamps(part)}, indent=1))


def _decode(config: DataConfig, reader: Reader, data_dir: Path, part: Path) -> None:
    raw = reader(config, data_dir)
    for name, (split, index) in _split(config, raw).items():
        size = OWN_SIZE[config.dataset] if name == "train" and _is_enlarged(config) else raw.image_size
        images = create(part / f"{name}_images.npy", len(index), size)
        decode(f"--dataset {config.dataset}", split, index, images)
        images.flush()
        np.save(part / f"{name}_labels.npy", split.labels[index])
    record = dataclasses.asdict(_describe(config, raw, part))
    for name in ("folder", *_OF_UNLABELED):  # the data directory may move
        del record[name]
    _write_record(part, record)


def _add_unlabeled(record: DatasetRecord, source: str) -> DatasetRecord:
    """Add the images without labels of a folder, decoded as the training images are; one array holds them all."""
    split, signature = folders.find_unlabeled(source)
    text = json.dumps([record.folder.name, signature, DECODER_VERSION])
    folder = record.folder.with_name(hashlib.sha256(text.encode()).hexdigest()[:32])

    def make(part: Path) -> None:
        labelled, _ = load(record, "train")
        count, size = len(split.labels), labelled.shape[-1]
        images = create(part / _STUDENTS_IMAGES, len(labelled) + count, size)
        images[: len(labelled)] = labelled
        decode(f"--unlabeled {source}", split, np.arange(count), images[len(labelled) :])
        images.flush()
        digest = hashlib.sha256(f"{count} {size}".encode())
        digest.update(images[len(labelled) :].data)
        _write_record(part, {"unlabeled": digest.hexdigest()[:16], "num_unlabeled": count})

    _make_once(folder, make, _is_unchanged)
    row = encoding.read_json(folder / _RECORD)
    del row[_FILES]
    return dataclasses.replace(record, **row, unlabeled_folder=folder)


def _normalise(record: DatasetRecord, normalize: str) -> DatasetRecord:
    """The same images with another mean and deviation, and the fingerprint that keys of the store then have."""
    numbers = normalisation(normalize)
    if numbers is None:
        return record
    fingerprint = hashlib.sha256(json.dumps([record.fingerprint, numbers]).encode()).hexdigest()
    return dataclasses.replace(record, fingerprint=fingerprint, mean=numbers[0], std=numbers[1])


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
    arrays = {split: _open(folder, split) for split in _SPLITS}
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
        fingerprint=_fingerprint(raw.class_names, raw.image_size, arrays),
        class_names=raw.class_names,
        image_size=raw.image_size,
        num_train=len(arrays["train"][1]),
        num_val=len(arrays["val"][1]),
        num_test=len(arrays["test"][1]),
        mean=mean,
        std=std,
    )


def _fingerprint(class_names: Sequence[str], image_size: int, arrays: Mapping[str, _Arrays]) -> str:
    digest = hashlib.sha256(json.dumps([class_names, image_size]).encode())
    for split, (images, labels) in arrays.items():
        digest.update(f"{split} {images.shape}".encode())
        digest.update(images.data)
        digest.update(labels.data)
    return digest.hexdigest()


def _compute_statistics(images_N3HW: NDArray[np.uint8]) -> tuple[Triple, Triple]:
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
    return _triple(mean), _triple(np.maximum(np.sqrt(variance), _LEAST_STD))


def _triple(values: NDArray[np.float64]) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and modification time of every array."""
    found = {path.name: path.stat() for path in sorted(folder.glob("*.npy"))}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in found.items()}


def _read(folder: Path) -> tuple[DatasetRecord, dict[str, list[int]]]:
    """The record of decoded images, and the stamps of their files when they were written."""
    path = folder / _RECORD
    row = encoding.read_json(path)
    stamps = row.pop(_FILES, {}) if isinstance(row, dict) else {}
    return encoding.decode(DatasetRecord, row, where=path, extra={"folder": folder}), stamps


def _is_whole(folder: Path) -> bool:
    """Whether decoded images are there as they were written.

    Files that have changed since, or were copied, are read once and compared with the fingerprint.
    """
    try:
        record, stamps = _read(folder)
        now = _stamps(folder)
        if stamps == now:
            return True
        arrays = {split: _open(folder, split) for split in _SPLITS}
        whole = _fingerprint(record.class_names, record.image_size, arrays) == record.fingerprint
    except (FileNotFoundError, *ARRAY_ERRORS):
        return False
    if whole:
        with suppress(OSError):  # a folder that others own is compared every time
            row = encoding.read_json(folder / _RECORD)
            write_text(folder / _RECORD, json.dumps(row | {_FILES: now}, indent=1))
    return whole


def _is_unchanged(folder: Path) -> bool:
    """Whether the arrays beside a record are the files that it was written for."""
    try:
        row = encoding.read_json(folder / _RECORD)
        return bool(row[_FILES] == _stamps(folder))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
