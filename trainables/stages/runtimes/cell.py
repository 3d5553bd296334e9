"""What is varied where a finished network is measured everywhere (standard library only)."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the table."""

    runtime: str
    """Of `backends.RUNTIMES`."""
    precision: str
    """Of `compression_config.PRECISIONS`."""
    batch_images: int
    """Images a call."""
    runtime_threads: int
    """CPU threads."""

    @property
    def name(self) -> str:
        """For a folder."""
        return f"{self.runtime}-{self.precision}-batch{self.batch_images}-threads{self.runtime_threads}"
