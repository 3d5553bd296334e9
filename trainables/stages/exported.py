"""A trained network becomes the files to ship, once per network."""

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Never

import torch

from trainables.configs import CandidateConfig
from trainables.records import DatasetRecord, ExportRecord, ModelRecord, read_export, to_json, write_text
from trainables.stages import data
from trainables.stages.export import export
from trainables.stages.workspace import Workspace, load_model
from trainables.store import Key, stage_key

VERSION = 1
PARITY_IMAGES = 512


def recipe(config: CandidateConfig, dataset: DatasetRecord, stage: str) -> dict[str, Any]:
    """What decides the weights of a `teacher` or `candidate`, flat and without local paths."""
    row = config.canonical().flat() | {"dataset": dataset.name, "image_size": dataset.image_size}
    unused = {**vars(config.measure)}
    if stage == "teacher":
        unused |= {**vars(config.student), **vars(config.prune)}
    return {name: value for name, value in row.items() if name not in unused}


def exported(
    config: CandidateConfig, dataset: DatasetRecord, model: ModelRecord, made_by: Mapping[str, Any], place: Workspace
) -> Generator[Never, None, ExportRecord]:
    """Write ONNX and TorchScript of a trained network, or find them in the store."""
    key: Key = stage_key("exported", version=VERSION, parents=[model.key], **vars(config.export))

    def compute(folder: Path) -> Generator[Never, None, None]:
        pixels, _ = data.load(dataset, "val")
        images = torch.from_numpy(pixels[:PARITY_IMAGES].copy()).float() / 255
        with place.lease().shared():
            record = export(
                load_model(model),
                mean=dataset.mean,
                std=dataset.std,
                image_size=dataset.image_size,
                class_names=dataset.class_names,
                recipe=made_by,
                parity_images=images,
                opset=config.export.opset,
                folder=folder,
                key=str(key),
            )
        write_text(folder / "record.json", to_json(record))
        yield from ()

    return read_export((yield from place.store.obtain(key, compute)))
