"""A trained network goes into the store: plain weights and its record."""

from pathlib import Path

import torch
from torch import nn

from trainables.records import DatasetRecord, EpochRecord, ModelRecord, to_json, write_text
from trainables.stages.models import count
from trainables.stages.weights import save_weights
from trainables.store import Key


def write_model(
    model: nn.Module, folder: Path, *, key: Key, name: str, dataset: DatasetRecord, curve: tuple[EpochRecord, ...]
) -> None:
    """Leave `weights.pt` and `record.json` in a stage's folder and drop the state that only resuming needed."""
    model.to("cpu").to(memory_format=torch.contiguous_format)
    num_params, num_nonzero_params, macs = count(model, dataset.image_size)
    save_weights(model, folder / "weights.pt")
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
    write_text(folder / "record.json", to_json(record))
    (folder / "state.pt").unlink(missing_ok=True)
