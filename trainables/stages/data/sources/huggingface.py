"""Read data sets of the Hugging Face hub, `hf:NAME[:CONFIG]`, and local parquet or arrow files of that form, `hf:PATH`.

Only formats that hold data are read: nothing that a data set brings is executed.
"""

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainables.config.candidate import DataConfig
from trainables.stages.data.decoding import RawDataset
from trainables.stages.data.sources.columns import Table, make_raw

PREFIX = "hf:"
EXTRA = "pip install 'compression-sweeps[datasets]'"
_SUFFIXES = (".parquet", ".arrow")
# Builders of the datasets library that only parse data; some others unpickle or run what they find.
_BUILDERS = ("parquet", "arrow", "imagefolder", "cache")
_SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("validation", "valid", "val", "dev"),
}
"""Split -> its names on the hub."""
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.+ -]+)?")


def is_local(dataset: str) -> bool:
    """Whether `hf:...` names a folder on this machine: it begins with `/`, `.` or `~`, or there is such a folder."""
    text = dataset.removeprefix(PREFIX)
    return dataset.startswith(PREFIX) and (text.startswith(("/", ".", "~")) or (bool(text) and Path(text).is_dir()))


def folder_of(dataset: str) -> Path:
    """Return the absolute path of the folder that `hf:PATH` names."""
    return Path(dataset.removeprefix(PREFIX)).expanduser().resolve()


def signature(dataset: str) -> str:
    """Return a digest that changes when a file of a local data set is added, removed, renamed or written."""
    root = folder_of(dataset)
    digest = hashlib.sha256(os.fsencode(root))
    for file in (file for files in _find_files(dataset).values() for file in files):
        status = file.stat()
        digest.update(os.fsencode(f"{file.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return digest.hexdigest()


def read_huggingface(config: DataConfig, data_dir: Path) -> RawDataset:
    """Read `hf:NAME[:CONFIG]` from the hub or its cache, or the parquet or arrow files of `hf:PATH`.

    Without a test split, the validation split is the test split, and validation images are cut off from train.

    Raises:
        ValueError: if the data set is not to be had, or its splits or columns are not those of labelled images.
    """
    dataset = config.dataset
    if importlib.util.find_spec("datasets") is None:
        raise _error(dataset, f"needs the package datasets, which is not installed: {EXTRA}, or take folder:PATH")
    with _quiet():
        if is_local(dataset):
            tables = _read_local(config, data_dir)
            root: Path | None = folder_of(dataset)
        else:
            tables, root = _read_hub(dataset)
    return make_raw(dataset, _choose_splits(dataset, tables), root=root, image_size=config.image_size)


def _read_local(config: DataConfig, data_dir: Path) -> dict[str, Table]:
    """Map arrow files as they are; write parquet files once as arrow, in a folder that goes when all is decoded."""
    import datasets

    found = _find_files(config.dataset)
    digest = hashlib.sha256(f"{config}{signature(config.dataset)}".encode()).hexdigest()[:16]
    scratch = data_dir / f".arrow-{digest}"
    shutil.rmtree(scratch, ignore_errors=True)  # left by a killed process
    tables: dict[str, Table] = {}
    for split, files in found.items():
        try:
            if files[0].suffix == ".arrow":
                parts = [datasets.Dataset.from_file(str(file)) for file in files]
                whole = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
            else:
                whole = datasets.Dataset.from_parquet(
                    [_literal(file) for file in files], cache_dir=str(scratch), split=split
                )
        except Exception as error:  # pyarrow and datasets raise anything on damaged files
            shutil.rmtree(scratch, ignore_errors=True)
            names = ", ".join(file.name for file in files)
            raise _error(config.dataset, f"cannot read {names} ({_reason(error)}); replace or remove them") from error
        tables[split] = Table(whole.data, whole.features)
        # mapped files stay readable as long as they are in use
        weakref.finalize(tables[split], shutil.rmtree, scratch, ignore_errors=True)
    return tables


def _find_files(dataset: str) -> dict[str, list[Path]]:
    """The data files of a local data set by split, which the first word of a path that names one decides."""
    root = folder_of(dataset)
    if not root.is_dir():
        raise _error(dataset, "no such folder; give an existing one with parquet or arrow files of train and test")
    files = [file for suffix in _SUFFIXES for file in sorted(root.rglob(f"*{suffix}")) if _is_data(file, root)]
    if not files:
        raise _error(dataset, "no .parquet or .arrow file in it; take folder:PATH for images that are files")
    found: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z0-9]+", str(file.relative_to(root)).lower())
        split = next((split for word in words for split, names in _SPLIT_NAMES.items() if word in names), None)
        if split is None:
            raise _error(
                dataset,
                f"{file.relative_to(root)} is of no split; rename it or its folder, as to train-00000-of-00001.parquet",
            )
        found.setdefault(split, []).append(file)
    for split, parts in found.items():
        if len({file.suffix for file in parts}) > 1:
            raise _error(dataset, f"{split} is there as .parquet and as .arrow; keep one of them")
    return found


def _is_data(file: Path, root: Path) -> bool:
    """Whether a file is no leftover: `datasets` keeps intermediate results as cache-....arrow beside the data."""
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.is_file() and not hidden and not file.name.startswith("cache-")


def _literal(file: Path) -> str:
    """A path that is taken as it is, not as a pattern."""
    return re.sub(r"([*?\[])", r"[\1]", str(file))


def _read_hub(dataset: str) -> tuple[dict[str, Table], Path | None]:
    import datasets

    text = dataset.removeprefix(PREFIX)
    if not _NAME.fullmatch(text):
        raise _error(dataset, "must be hf:NAME or hf:NAME:CONFIG, as on the hub, or hf:PATH, as hf:./photos")
    name, _, config = text.partition(":")
    try:
        builder = datasets.load_dataset_builder(name, config or None)
        kind = type(builder).__module__.rpartition(".")[2]
        if kind not in _BUILDERS or not type(builder).__module__.startswith("datasets.packaged_modules."):
            raise _error(dataset, f"its files are of the kind {kind!r}; only parquet, arrow and image files are read")
        builder.download_and_prepare()
        found = builder.as_dataset()
    except ValueError as error:
        if str(error).startswith("--dataset"):
            raise
        raise _error(dataset, f"cannot be read ({_reason(error)}); check NAME and CONFIG on the hub") from error
    except Exception as error:  # datasets, the hub and pyarrow raise anything
        fix = "check the name; without a network, copy the Hugging Face cache (HF_HOME) and set HF_HUB_OFFLINE=1"
        raise _error(dataset, f"cannot be had from the hub or its cache ({_reason(error)}); {fix}") from error
    tables: dict[str, Table] = {}
    for given, rows in found.items():
        split = next((split for split, names in _SPLIT_NAMES.items() if str(given).lower() in names), None)
        if split is not None:
            tables[split] = Table(rows.data, rows.features)
    # files of images, which no parquet file brings, lie in the cache of the hub
    return tables, Path(datasets.config.HF_CACHE_HOME).resolve() if kind == "imagefolder" else None


def _choose_splits(dataset: str, tables: Mapping[str, Table]) -> dict[str, Table]:
    if "train" not in tables or len(tables) < 2:
        there = ", ".join(tables) or "none of them"
        raise _error(dataset, f"needs the splits train and test (validation, if there is no test), but has {there}")
    if "test" in tables:
        return dict(tables)
    return {"train": tables["train"], "test": tables["val"]}


def _reason(error: BaseException) -> str:
    lines: Sequence[str] = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(". ")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep bars and retries of the libraries off the screen; what comes of them is told in one line."""
    import datasets

    logs = [logging.getLogger(name) for name in ("datasets", "huggingface_hub", "fsspec")]
    levels = [log.level for log in logs]
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for log in logs:
        log.setLevel(logging.ERROR + 1)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
        if not shown:
            datasets.enable_progress_bars()


def _error(dataset: str, problem: str) -> ValueError:
    return ValueError(f"--dataset {dataset}: {problem}.")
