"""What a data set is called: its local path, its name without one, and what tells that its files have changed."""

import dataclasses

from trainables.config.candidate import DataConfig
from trainables.stages.data.sources import folders, huggingface


def public_name(dataset: str) -> str:
    """Return the data set's name without local paths: `folder:photos` for `folder:/home/me/photos`."""
    if dataset.startswith(folders.PREFIX):
        return folders.PREFIX + folders.folder_of(dataset).name
    if huggingface.is_local(dataset):
        return f"{huggingface.PREFIX}./{huggingface.folder_of(dataset).name}"
    return dataset


def absolute(config: DataConfig) -> DataConfig:
    """The configuration with the absolute path of a data set that is a folder."""
    if config.dataset.startswith(folders.PREFIX):
        return dataclasses.replace(config, dataset=f"{folders.PREFIX}{folders.folder_of(config.dataset)}")
    if huggingface.is_local(config.dataset):
        return dataclasses.replace(config, dataset=f"{huggingface.PREFIX}{huggingface.folder_of(config.dataset)}")
    return config


def signature(dataset: str) -> str:
    """Return what changes with the files of a data set: a digest for a folder, else its name."""
    if dataset.startswith(folders.PREFIX):
        return folders.signature(dataset)
    return huggingface.signature(dataset) if huggingface.is_local(dataset) else dataset


def is_folder(dataset: str) -> bool:
    """Whether a data set is a local folder, whose path records do not hold."""
    return dataset.startswith(folders.PREFIX) or huggingface.is_local(dataset)


def left_out(dataset: str) -> str | None:
    """Say which files of a folder data set are not read; None if all are, or if it is no folder."""
    return folders.left_out(dataset) if dataset.startswith(folders.PREFIX) else None
