"""The workspace of a node (store, data, device), and a candidate's bench in it."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from trainables.config.candidate import Candidate, DataConfig
from trainables.locks import NODE, DeviceLock
from trainables.records.stages import DatasetRecord
from trainables.stages.data import prepared
from trainables.stages.data.on_device import Images, load_images
from trainables.stages.models import placement
from trainables.stages.models.devices import accelerator
from trainables.stages.models.devices.gpu import visible_name
from trainables.store.results import Store


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """What stages need besides their configuration; nothing here changes a result."""

    store: Store
    data: DataConfig
    """Where this node finds the images: `folder:/home/me/photos` where a candidate says `folder:photos`."""
    data_dir: Path
    """Downloads and decoded arrays of this node."""
    device: str
    """`cpu` or `gpu`, whatever accelerator that is here."""
    threads: int
    """CPU threads of this process."""
    lock_dir: Path
    """Lock files of this node, on a local disk: trials train together, a measurement runs alone."""
    memory_share: float = 1.0
    """Fraction of the GPU's memory that this process may use in all, in (0, 1]; see `placement.set_up_process`."""
    graphs: bool = False
    """Whether training replays the network's kernels as graphs, which are the same; see `placement.capture_model`."""

    @property
    def found(self) -> torch.device:
        """The device as PyTorch calls it here; raises like `accelerator.find_device`."""
        return accelerator.find_device(self.device)

    def dataset(self) -> DatasetRecord:
        """The prepared images, decoded first if necessary; remembered for the life of the process."""
        return prepared.prepare_once(self.data, self.data_dir)

    def device_lock(self, *, on_gpu: bool | None = None, elsewhere: str | None = None) -> DeviceLock:
        """The lock for computing on this node: shared for training, exclusive for measuring.

        A measurement on the CPU holds the node, as all trials use the CPU whatever they train on; one on a GPU holds
        that GPU, and the node only if the trials on other GPUs turn out to disturb it.

        Args:
            on_gpu: whether that is on a GPU; None means where this workspace trains.
            elsewhere: address of another machine that this node measures on; nobody here trains there.
        """
        if elsewhere is not None:
            return DeviceLock(self.lock_dir, elsewhere)
        drain = None if self.device == accelerator.CPU else partial(accelerator.synchronize, self.found)
        node = DeviceLock(self.lock_dir, NODE, drain=drain)
        if not (drain is not None if on_gpu is None else on_gpu):
            return node
        return DeviceLock(self.lock_dir, f"gpu-{visible_name(0)}", drain=drain, node=node)

    def make_room(self) -> None:
        """Release the GPU memory that PyTorch caches, because another process is about to measure there."""
        if self.device != accelerator.CPU:
            accelerator.empty_cache()

    def enter(self) -> None:
        """Set this process up for computing on the device."""
        placement.set_up_process(self.device, threads=self.threads, memory_share=self.memory_share)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One candidate in progress: its settings, its images and its workspace."""

    candidate: Candidate
    dataset: DatasetRecord
    images: Images
    """On the device of the workspace; those without labels are for students alone."""
    place: Workspace

    @classmethod
    def of(cls, candidate: Candidate, place: Workspace) -> "Bench":
        """Load the images of a workspace for one candidate."""
        dataset = place.dataset()
        bench = cls(candidate=candidate, dataset=dataset, images=load_images(dataset, place.device), place=place)
        return bench.labelled() if candidate.data.unlabeled is None else bench

    def labelled(self) -> "Bench":
        """The same bench without the images that have no label."""
        return dataclasses.replace(self, images=self.images.labelled())
