"""Stream images that do not fit into a GPU's memory: read them from the memory map ahead of the computation."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from trainables.stages.models.devices import accelerator

AHEAD = 3  # batches: one is in use, one is being copied, one is being read
Index = slice | Tensor
Arrival = tuple[Tensor, torch.Event | None]
"""Rows on the device, and on a GPU the event that marks the end of their copy."""


class Streamed:
    """uint8 images [N, 3, H, W] in host memory that can be indexed like a tensor on `device`.

    Announced batches are read into pinned memory by a separate thread and copied on a separate stream while the device
    computes. Any other index is read when it is asked for. The pixels are the same either way.
    """

    def __init__(self, images_N3HW: Tensor, device: torch.device) -> None:
        self._images, self.device = images_N3HW, device
        self._stream = accelerator.open_stream(device)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._coming: Iterator[Index] = iter(())
        self._ahead: deque[tuple[Index, Future[Arrival]]] = deque()

    @property
    def shape(self) -> torch.Size:
        """[N, 3, H, W]."""
        return self._images.shape

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Index) -> Tensor:
        if self._ahead and self._ahead[0][0] is index:
            images, copied = self._ahead.popleft()[1].result()
            self._read_ahead()
        else:
            images, copied = self._read(index)
        if copied is not None:
            accelerator.take_over(images, copied)
        return images

    def take_first(self, count: int) -> "Streamed":
        """Return the first `count` images, streamed too."""
        return Streamed(self._images[:count], self.device)

    def announce(self, batches: Iterable[Index]) -> None:
        """Announce the next indices, in order; they replace earlier ones.

        The very same objects must be used as indices later: they are compared by identity.
        """
        for _, reading in self._ahead:
            reading.cancel()
        self._ahead.clear()
        self._coming = iter(batches)
        self._read_ahead()

    def _read_ahead(self) -> None:
        while len(self._ahead) < AHEAD and (index := next(self._coming, None)) is not None:
            self._ahead.append((index, self._reader.submit(self._read, index)))

    def _read(self, index: Index) -> Arrival:
        host = self._gather(index)
        if self._stream is None:
            return host.to(self.device), None
        with accelerator.on_stream(self._stream):
            images = host.to(self.device, non_blocking=True)  # torch keeps pinned memory until the copy ends
            return images, self._stream.record_event()

    def _gather(self, index: Index) -> Tensor:
        """Copy the rows into new host memory, pinned if another stream copies them on."""
        if isinstance(index, slice):
            rows = self._images[index]
            return torch.empty(rows.shape, dtype=torch.uint8, pin_memory=self._stream is not None).copy_(rows)
        host = torch.empty((len(index), *self.shape[1:]), dtype=torch.uint8, pin_memory=self._stream is not None)
        return torch.index_select(self._images, 0, index.cpu(), out=host)
