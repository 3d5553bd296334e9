"""Find images and labels in the columns of a table, as data sets of the Hugging Face hub have them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainables.stages.data.decoding import RawDataset, RawSplit, find_common_size, open_image

# Where several columns would do, the first of these names is taken.
_IMAGES = ("image", "img", "pixel_values", "picture", "photo", "jpg", "png")
_LABELS = ("label", "labels", "fine_label", "class", "target", "category", "y", "cls")
_WHOLE = ("int8", "int16", "int32", "int64")
NO_LABEL = -1  # of hidden test splits on the hub


@dataclass(frozen=True)
class Table:
    """One split: an arrow table that is mapped from disk, and what `datasets` says of its columns."""

    rows: Any
    features: Mapping[str, Any]


def make_raw(dataset: str, tables: Mapping[str, Table], *, root: Path | None, image_size: int | None) -> RawDataset:
    """Make the splits of a data set.

    Args:
        dataset: as typed, for messages.
        tables: by split; `train` and `test` are there.
        root: the folder that images may lie in that are given by a path; None if only bytes are read.
        image_size: None takes the images' own.

    Raises:
        ValueError: if there is no column of images or labels, or they differ between splits.
    """
    tables = {name: tables[name] for name in ("train", "val", "test") if name in tables}
    image, label = _find_columns(dataset, tables["train"])
    for name, table in tables.items():
        if missing := {image, label} - set(table.features):
            raise ValueError(f"--dataset {dataset}: {name} has no column {min(missing)!r}, which train has.")
    names = _name_classes(dataset, tables["train"], label)
    if "val" in tables and _is_hidden(tables["test"], label):
        tables = {"train": tables["train"], "test": tables["val"]}
    splits = {}
    for name, table in tables.items():
        labels = _number(dataset, name, table, label, names)
        splits[name] = _make_split(dataset, name, table, image=image, labels=labels, root=root)
    size = image_size or find_common_size(dataset, list(splits.values()))
    return RawDataset(
        image_size=size,
        class_names=names,
        train=splits["train"],
        test=splits["test"],
        val=splits.get("val"),
    )


def _find_columns(dataset: str, table: Table) -> tuple[str, str]:
    images = [name for name in table.features if _holds_images(name, table)]
    labels = [name for name in table.features if _holds_labels(name, table)]
    return _choose(dataset, "images", images, _IMAGES, table), _choose(dataset, "labels", labels, _LABELS, table)


def _holds_images(name: str, table: Table) -> bool:
    """Whether a column has the type `Image` of `datasets`, or without any the form of one: bytes, a path, or both."""
    kind = type(table.features[name]).__name__
    if kind == "Image":
        return True
    form = str(table.rows.schema.field(name).type)
    return kind in ("Value", "dict") and ("binary" in form or (name in _IMAGES and form in ("string", "large_string")))


def _holds_labels(name: str, table: Table) -> bool:
    """Whether a column is a ClassLabel, or has the name of one and holds whole numbers or words."""
    kind = type(table.features[name]).__name__
    form = str(table.rows.schema.field(name).type)
    return kind == "ClassLabel" or (name in _LABELS and form.removeprefix("u") in (*_WHOLE, "string", "large_string"))


def _choose(dataset: str, what: str, found: Sequence[str], preferred: Sequence[str], table: Table) -> str:
    for name in preferred:
        if name in found:
            return name
    if len(found) == 1:
        return found[0]
    which = f"several columns of {what} ({', '.join(found)})" if found else f"no column of {what}"
    raise ValueError(
        f"--dataset {dataset}: {which} among {', '.join(table.features)}; call the one to read {preferred[0]!r}."
    )


def _name_classes(dataset: str, table: Table, label: str) -> tuple[str, ...]:
    """The names of the classes: those of a ClassLabel, else the values in train, sorted."""
    feature = table.features[label]
    if type(feature).__name__ == "ClassLabel" and feature.names:
        names = tuple(str(name) for name in feature.names)
    else:
        values = {value for value in table.rows.column(label).to_pylist() if value is not None}
        names = tuple(str(value) for value in sorted(values))
    if len(names) < 2:
        raise ValueError(f"--dataset {dataset}: column {label!r} has {len(names)} class; two classes are needed.")
    return names


def _number(dataset: str, split: str, table: Table, label: str, names: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """The labels of a split as positions in `names`.

    Raises:
        ValueError: if a row has no label or one that train has not; names the row.
    """
    values = table.rows.column(label).to_pylist()
    if type(table.features[label]).__name__ == "ClassLabel":
        known = dict(enumerate(names)).keys()
        numbers = [value if value in known else NO_LABEL for value in values]
    else:
        positions = {name: position for position, name in enumerate(names)}
        numbers = [positions.get(str(value), NO_LABEL) for value in values]
    if NO_LABEL in numbers:
        row = numbers.index(NO_LABEL)
        raise ValueError(
            f"--dataset {dataset}: row {row} of {split} has the label {values[row]!r} in column {label!r}, which is no "
            f"class of train ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}); label it or remove the split."
        )
    return np.array(numbers, dtype=np.int64)


def _is_hidden(table: Table, label: str) -> bool:
    """Whether a test split keeps its labels to itself, as those of contests do."""
    return set(table.rows.column(label).to_pylist()) <= {None, NO_LABEL}


def _make_split(
    dataset: str, split: str, table: Table, *, image: str, labels: np.ndarray[Any, Any], root: Path | None
) -> RawSplit:
    if not len(labels):
        raise ValueError(f"--dataset {dataset}: {split} has no rows; add some or remove it.")
    column = table.rows.column(image)

    def open_row(i: int) -> Image.Image:
        assert table.rows is not None  # keeps the files of this table as long as they are read
        return _open_cell(column[i].as_py(), root)

    return RawSplit(labels, [f"{split} row {i}" for i in range(len(labels))], open_row)


def _open_cell(cell: Any, root: Path | None) -> Image.Image:
    """Open the image of one cell: bytes, a path, or both, of which the bytes count.

    Raises:
        ValueError: if there is neither, or the path leads out of the data set.
    """
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, cell)
    if isinstance(content, bytes):
        return open_image(content)
    if not isinstance(path, str) or not path:
        raise ValueError("it has neither bytes nor a path")
    if root is None:
        raise ValueError("it has a path and no bytes")
    file = (root / path).resolve()
    if not file.is_relative_to(root):
        raise ValueError(f"its path {path!r} leads out of the data set")
    return open_image(str(file))
