"""Where a candidate is made: store, data folder, device, and the lease on that device."""

from dataclasses import dataclass
from pathlib import Path

import torch

from trainables.locks import DeviceLock
from trainables.stages.models import placement
from trainables.store.results import Store


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
    lock_dir: Path
    """Lock files of this node, on a local disk: trials train together, a measurement runs alone."""
    memory_share: float = 1.0
    """Of the GPU's memory, for this process in all, in (0, 1]; see `compute.enter`."""

    def device_lock(self) -> DeviceLock:
        """The right to compute on this node, together with others or, to measure, alone.

        One for the node whatever device a trial trains on: latency is measured on the CPU, which all of them use.
        """
        return DeviceLock(self.lock_dir, "cpu", drain=torch.cuda.synchronize if self.device == "cuda" else None)

    def make_room(self) -> None:
        """Give the GPU's memory back that PyTorch keeps for later: another process is about to measure there."""
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def enter(self) -> None:
        """Set this process up for computing on the device."""
        placement.enter(self.device, threads=self.threads, memory_share=self.memory_share)
