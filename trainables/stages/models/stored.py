"""Write a trained network into the store as plain weights and a record, and load it again."""

from pathlib import Path

import torch
from torch import nn

from trainables.files import write_text
from trainables.layout import RECORD, STATE, WEIGHTS
from trainables.records.encoding import to_json
from trainables.records.stages import DatasetRecord, EpochRecord, ModelRecord
from trainables.stages.models.build import build_model
from trainables.stages.models.inspection import count
from trainables.stages.models.weights import load_weights, save_weights
from trainables.stages.models.zoo.timm_zoo import names_weights
from trainables.store.results import Key


def write_model(
    model: nn.Module, folder: Path, *, key: Key, name: str, dataset: DatasetRecord, curve: tuple[EpochRecord, ...]
) -> None:
    """Write `weights.pt` and `record.json` into a stage's folder; delete the state, which only resuming needs."""
    model.to("cpu").to(memory_format=torch.contiguous_format)
    num_params, num_nonzero_params, macs = count(model, dataset.image_size)
    save_weights(model, folder / WEIGHTS)
    record = ModelRecord(
        key=str(key),
        folder=folder,
        model_name=name,
        num_classes=dataset.num_classes,
        image_size=dataset.image_size,
        curve=curve,
        num_params=num_params,
        num_nonzero_params=num_nonzero_params,
        macs=macs,
        train_time_s=sum(epoch.seconds for epoch in curve),
    )
    write_text(folder / RECORD, to_json(record))
    (folder / STATE).unlink(missing_ok=True)


def build_for(name: str, dataset: DatasetRecord, *, pretrained: bool = False) -> torch.nn.Module:
    """Build a model for the data set's classes and image size."""
    return build_model(name, num_classes=dataset.num_classes, image_size=dataset.image_size, pretrained=pretrained)


def build_to_train(name: str, dataset: DatasetRecord, *, pretrained: bool) -> torch.nn.Module:
    """Build a model that starts from pretrained weights if these are asked for, or named by a tag of timm's."""
    return build_for(name, dataset, pretrained=pretrained or names_weights(name))


def load_model(record: ModelRecord) -> torch.nn.Module:
    """Load the trained network of a record, on the CPU, in eval mode."""
    model = build_model(record.model_name, num_classes=record.num_classes, image_size=record.image_size)
    load_weights(model, record.folder / WEIGHTS)
    return model.eval()
