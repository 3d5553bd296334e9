"""Request and response of the processes that probe training throughput (standard library only)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """One student that all processes of a probe train at the same time."""

    device: str
    config: Mapping[str, Any]
    """The flat row of the configuration."""
    data_dir: Path
    """Folder of the prepared images."""
    threads: int
    """CPU threads per process."""
    cores: tuple[int, ...]
    """Logical CPUs that all processes share."""
    memory_share: float
    """Fraction of the GPU's memory that a process may use."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Throughput and memory of one trial while all of them ran."""

    images: int
    seconds: float
    peak_bytes: int
    """GPU memory, including the context; on a CPU, this process's resident memory."""
    device_bytes: int
    """Total memory of the GPU, or of the machine."""
    others_bytes: int = 0
    """GPU memory that was in use before this process came, of other users or of other probes; 0 if unknown."""

    @property
    def images_per_s(self) -> float:
        """Training images per second."""
        return self.images / self.seconds
