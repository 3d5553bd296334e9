"""One cell of the table that `sweeps.runtimes` measures for finished networks (standard library only)."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The settings of one measurement of a finished network."""

    runtime: str
    """One of `base.RUNTIMES`."""
    precision: str
    """One of `config.compression.PRECISIONS`."""
    batch_images: int
    """Images per call."""
    runtime_threads: int
    """CPU threads."""

    @property
    def name(self) -> str:
        """The name of the cell's folder."""
        return f"{self.runtime}-{self.precision}-batch{self.batch_images}-threads{self.runtime_threads}"
