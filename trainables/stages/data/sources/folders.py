"""Read the user's own images: `folder:PATH` with train/<class>/, test/<class>/ and, optionally, val/<class>/.

And folders of images without labels, whatever lies where in them.
"""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from trainables.config.candidate import DataConfig
from trainables.config.checks import is_text
from trainables.stages.data.decoding import RawDataset, RawSplit, find_common_size, open_image, readable_formats

PREFIX = "folder:"
_SPLITS: Mapping[str, tuple[str, ...]] = {"train": ("train",), "test": ("test",), "val": ("val", "valid", "validation")}
"""Split -> the folder's names."""


class _File(NamedTuple):
    path: str
    relative: str
    label: int
    size: int
    modified_ns: int


def folder_of(dataset: str) -> Path:
    """Return the absolute path of the folder that `folder:PATH` names."""
    return Path(dataset.removeprefix(PREFIX)).expanduser().resolve()


def signature(dataset: str) -> str:
    """Return a digest that changes when a file is added, removed, renamed or written.

    It is made from names, sizes and times alone: 0.5 s for 60,000 files.
    """
    return _sign(folder_of(dataset), [file for _, files in _list_splits(dataset).values() for file in files])


def find_unlabeled(folder: str) -> tuple[RawSplit, str]:
    """Return the images of `--unlabeled FOLDER`, at any depth, with labels of -1, and a digest as `signature` does.

    Raises:
        ValueError: if there is no such folder, or no image in it.
    """
    root, flag = Path(folder).expanduser().resolve(), f"--unlabeled {folder}"
    if not root.is_dir():
        raise ValueError(f"{flag}: no such folder; give an existing one with images in it, at any depth.")
    entries = sorted(_find_images(str(root)), key=lambda entry: entry.path)
    if not entries:
        raise ValueError(f"{flag}: no images in it; add some or leave the flag out.")
    files = [_stat_file(flag, root, entry, -1) for entry in entries]
    return _make_split(files), _sign(root, files)


def _sign(root: Path, files: list[_File]) -> str:
    digest = hashlib.sha256(os.fsencode(root))
    rows = [f"{file.relative}\0{file.size}\0{file.modified_ns}\0" for file in files]
    digest.update("".join(rows).encode(errors="surrogateescape"))
    return digest.hexdigest()


def read_folder(config: DataConfig, data_dir: Path) -> RawDataset:
    """List the images of `folder:PATH`; `data_dir` is not used.

    Raises:
        ValueError: if the layout is wrong, or the images differ in size and `image_size` is None.
    """
    splits = _list_splits(config.dataset)
    class_names = splits["train"][0]
    if len(class_names) < 2:
        raise _error(config.dataset, f"only the class {class_names[0]!r} in train/; two classes are needed")
    for name, (classes, _) in splits.items():
        if classes != class_names:
            raise _error(config.dataset, _describe_difference(name, class_names, classes))
    raw = {name: _make_split(files) for name, (_, files) in splits.items()}
    size = config.image_size or find_common_size(config.dataset, list(raw.values()))
    return RawDataset(
        image_size=size, class_names=class_names, train=raw["train"], test=raw["test"], val=raw.get("val")
    )


def _list_splits(dataset: str) -> dict[str, tuple[tuple[str, ...], list[_File]]]:
    root = folder_of(dataset)
    if not root.is_dir():
        raise _error(dataset, "no such folder; give an existing one with train/<class>/ and test/<class>/ in it")
    found = {}
    for split, names in _SPLITS.items():
        there = [name for name in names if (root / name).is_dir()]
        if len(there) > 1:
            raise _error(dataset, f"{' and '.join(there)} are one split; keep one of these folders")
        if there:
            found[split] = _list_split(dataset, root, there[0])
        elif split != "val":
            raise _error(dataset, f"no folder {split!r} in it; put images in {split}/<class>/")
    return found


def _list_split(dataset: str, root: Path, split: str) -> tuple[tuple[str, ...], list[_File]]:
    entries = sorted((root / split).iterdir())
    classes = tuple(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise _error(dataset, f"no class folder in {split}/; put images in {split}/<class>/")
    for name in classes:
        if not is_text(name):
            raise _error(dataset, f"the class folder {os.fsencode(name)!r} in {split}/ has no UTF-8 name; rename it")
    files: list[_File] = []
    for label, name in enumerate(classes):
        entries_of_class = sorted(_find_images(str(root / split / name)), key=lambda entry: entry.path)
        if not entries_of_class:
            raise _error(dataset, f"no images in {split}/{name}/; add some or remove the folder")
        files += [_stat_file(f"--dataset {dataset}", root, entry, label) for entry in entries_of_class]
    return classes, files


def left_out(dataset: str) -> str | None:
    """Say how many files of `folder:PATH` are not read, by suffix; None if all are."""
    paths = [
        path for names in _SPLITS.values() for name in names for path in (folder_of(dataset) / name).glob("*/**/*")
    ]
    hidden = len(folder_of(dataset).parts)
    files = [p for p in paths if p.is_file() and not any(part.startswith(".") for part in p.parts[hidden:])]
    other = Counter(path.suffix.lower() or "no suffix" for path in files if path.suffix.lower() not in _suffixes())
    if not other:
        return None
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in other.most_common(5))
    return (
        f"--dataset {dataset}: {other.total()} of {len(files)} files are left out ({kinds}): Pillow opens no files of"
        " these names; convert those that are pictures, as to .png or .jpg."
    )


def _find_images(folder: str) -> Iterator[os.DirEntry[str]]:
    """Find every visible file below with a suffix that Pillow opens; do not follow links to folders."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _find_images(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in _suffixes():  # noqa: PTH122 (Path.suffix: 10 times slower)
                yield entry


def _stat_file(flag: str, root: Path, entry: os.DirEntry[str], label: int) -> _File:
    relative = entry.path[len(str(root)) + 1 :]
    try:
        stat = entry.stat()
    except OSError as error:
        raise ValueError(f"{flag}: {relative} cannot be read ({error.strerror}); replace it or remove it.") from error
    return _File(entry.path, relative, label, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _suffixes() -> frozenset[str]:
    """Return the suffixes, such as `.jpg`, of all formats that are read."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in readable_formats())


def _make_split(files: list[_File]) -> RawSplit:
    labels = np.array([file.label for file in files], dtype=np.int64)
    return RawSplit(labels, [file.relative for file in files], lambda i: open_image(files[i].path))


def _describe_difference(split: str, expected: tuple[str, ...], classes: tuple[str, ...]) -> str:
    missing, extra = sorted(set(expected) - set(classes)), sorted(set(classes) - set(expected))
    parts = [f"{split}/ lacks {', '.join(missing)}"] if missing else []
    parts += [f"train/ lacks {', '.join(extra)}"] if extra else []
    return f"train/ and {split}/ must have the same classes, but {' and '.join(parts)}; add or remove these folders"


def _error(dataset: str, problem: str) -> ValueError:
    return ValueError(f"--dataset {dataset}: {problem}.")
