"""What is asked of the processes that probe training speed, and what they answer (standard library only)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """One student, to be trained by every process of a probe at the same time."""

    device: str
    config: Mapping[str, Any]
    """The configuration, flat."""
    data_dir: Path
    """Where the prepared images lie."""
    threads: int
    """CPU threads of a process."""
    cores: tuple[int, ...]
    """Logical CPUs that all processes share."""
    memory_share: float
    """Of the GPU's memory, what a process may take."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What one trial did while all of them ran."""

    images: int
    seconds: float
    peak_bytes: int
    """CUDA memory, the context and whatever else was on the GPU included; on a CPU this process's resident memory."""
    device_bytes: int
    """Memory of the GPU, or of the machine."""

    @property
    def images_per_s(self) -> float:
        """Training images a second."""
        return self.images / self.seconds
