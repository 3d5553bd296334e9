"""Where a candidate is made: store, data folder, device, and the lease on that device."""

from dataclasses import dataclass
from pathlib import Path

import torch

from trainables.records import DatasetRecord, ModelRecord
from trainables.stages import compute
from trainables.stages.lease import DeviceLease
from trainables.stages.models import build_model
from trainables.stages.weights import load_weights
from trainables.store import Store


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """What stages need besides their configuration; nothing in it changes a result."""

    store: Store
    data_dir: Path
    """Downloads and decoded arrays of this node."""
    device: str
    """`cpu` or `cuda`."""
    threads: int
    """CPU threads of this process."""
    lease_dir: Path
    """Lock files of this node, on a local disk: trials train together, a measurement runs alone."""
    memory_share: float = 1.0
    """Of the GPU's memory, for this process in all, in (0, 1]; see `compute.enter`."""

    def lease(self) -> DeviceLease:
        """The right to compute on this node, together with others or, to measure, alone.

        One for the node whatever device a trial trains on: latency is measured on the CPU, which all of them use.
        """
        return DeviceLease(self.lease_dir, "cpu", drain=torch.cuda.synchronize if self.device == "cuda" else None)

    def make_room(self) -> None:
        """Give the GPU's memory back that PyTorch keeps for later: another process is about to measure there."""
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def enter(self) -> None:
        """Set this process up for computing on the device."""
        compute.enter(self.device, threads=self.threads, memory_share=self.memory_share)


def build_for(name: str, dataset: DatasetRecord, *, pretrained: bool = False) -> torch.nn.Module:
    """A fresh model that fits the data set."""
    return build_model(name, num_classes=dataset.num_classes, image_size=dataset.image_size, pretrained=pretrained)


def load_model(record: ModelRecord) -> torch.nn.Module:
    """The trained network of a record, on the CPU, in evaluation mode."""
    model = build_model(record.model_name, num_classes=record.num_classes, image_size=record.image_size)
    load_weights(model, record.folder / "weights.pt")
    return model.eval()
