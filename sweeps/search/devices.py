"""The devices of a sweep: the cluster it joins, and the share of cores and GPUs that a trial gets."""

import math
import re
from dataclasses import dataclass

AUTO = "auto"
ADDRESS = re.compile(r"auto|[A-Za-z0-9._-]+:[0-9]{1,5}|\[[0-9a-fA-F:]+\]:[0-9]{1,5}")


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What a sweep may use, and what a trial gets of it."""

    address: str | None = None
    """Ray cluster to join: HOST:PORT, `auto` for the one of this machine, or `none` for a Ray of the sweep's own
    (default: what RAY_ADDRESS says, which `ray job submit` sets, else `none`)."""
    gpus: int = 0
    """GPUs to use; 0 trains on the CPU."""
    gpus_per_trial: float | str = 1.0
    """Share of a GPU a trial gets, up to 1, or a whole number of GPUs; `auto` measures which share gives the most
    images a second in all."""
    mps: bool = False
    """Run NVIDIA's Multi-Process Service, on every node, while the sweep runs: trials on one GPU compute at the same
    time, not in turn."""
    graphs: bool = False
    """Replay each training step's network as CUDA graphs: the same kernels in a fraction of the calls. Networks that
    cannot be captured train as without."""
    cpus: int = 1
    """CPU cores to use."""
    cpus_per_trial: int | str = 1
    """CPU cores a trial gets where it trains on the CPU; `auto` measures, at every start, which number gives the most
    images a second in all."""

    def __post_init__(self) -> None:
        if self.address is not None and not ADDRESS.fullmatch(self.address):
            raise ValueError(f"address={self.address!r} must be auto, none or HOST:PORT, such as 10.0.0.1:6379.")
        self._check_cpus()
        self._check_gpus()

    def _check_cpus(self) -> None:
        if isinstance(self.cpus_per_trial, str) and self.cpus_per_trial != AUTO:
            raise ValueError(f"cpus_per_trial={self.cpus_per_trial!r} must be a whole number or {AUTO}.")
        if self.cpus_per_trial == AUTO and (self.gpus or self.address):
            where = f"gpus={self.gpus}" if self.gpus else f"address={self.address}"
            raise ValueError(f"cpus_per_trial={AUTO} measures trials on this machine's cores, but got {where}.")
        if self.cpus < 1:
            raise ValueError(f"`cpus >= 1` must hold, but got cpus={self.cpus}.")
        if not 1 <= self.cores_per_trial <= self.cpus:
            per_trial = f"cpus_per_trial={self.cores_per_trial}"
            raise ValueError(f"`1 <= cpus_per_trial <= cpus` must hold, but got {per_trial} and cpus={self.cpus}.")

    def _check_gpus(self) -> None:
        if self.gpus_per_trial == AUTO and self.address:
            raise ValueError(f"gpus_per_trial={AUTO} measures on this machine's GPU, but got address={self.address}.")
        if self.gpus < 0:
            raise ValueError(f"`gpus >= 0` must hold, but got gpus={self.gpus}.")
        if isinstance(self.gpus_per_trial, str) and self.gpus_per_trial != AUTO:
            raise ValueError(f"gpus_per_trial={self.gpus_per_trial!r} must be a number or {AUTO}.")
        for name in ("mps", "graphs"):
            if getattr(self, name) and not self.gpus:
                raise ValueError(f"{name}=True needs GPUs, but got gpus={self.gpus}.")
        share = self.share
        if not (0 < share <= 1 or (math.isfinite(share) and share == int(share) >= 1)):
            raise ValueError(f"gpus_per_trial={share} must be a share in (0, 1] or a whole number.")
        if self.gpus and share > self.gpus:
            raise ValueError(
                f"`gpus_per_trial <= gpus` must hold, but got gpus_per_trial={share} and gpus={self.gpus}."
            )

    @property
    def device(self) -> str:
        """The kind of device that trials train on: `cpu` or `gpu`."""
        return "gpu" if self.gpus else "cpu"

    @property
    def concurrency(self) -> int:
        """Trials that run at once."""
        if not self.gpus:
            return self.cpus // self.cores_per_trial
        # A trial's share lies on one GPU, so whole trials are counted per GPU; 1e-9 forgives 1 / (1 / 3).
        return int(self.gpus / self.share) if self.share > 1 else self.gpus * int(1 / self.share + 1e-9)

    @property
    def share(self) -> float:
        """GPUs of a trial; one until `auto` has been measured."""
        return 1.0 if isinstance(self.gpus_per_trial, str) else self.gpus_per_trial

    @property
    def cores_per_trial(self) -> int:
        """CPU cores of a trial that trains there; one until `auto` has been measured."""
        return 1 if isinstance(self.cpus_per_trial, str) else self.cpus_per_trial

    @property
    def resources(self) -> dict[str, float]:
        """The resources that Ray reserves for a trial."""
        if not self.gpus:
            return {"cpu": self.cores_per_trial}
        # With fewer cores than trials, each reserves a fraction, so that cores do not limit how many share a GPU.
        return {
            "cpu": self.cpus / self.concurrency if self.cpus < self.concurrency else self.threads,
            "gpu": self.share,
        }

    @property
    def alone(self) -> dict[str, float]:
        """The resources of a trial that has run out of memory beside others: at least a whole GPU."""
        return self.resources | {"gpu": max(1.0, self.share)}

    @property
    def threads(self) -> int:
        """CPU threads a trial may use, so that trials that run at once do not compete for cores."""
        return max(1, self.cpus // self.concurrency)

    @property
    def alone_after_running_out(self) -> dict[str, float] | None:
        """`alone` where trials share a GPU, else None: the trial has a whole GPU already, so a retry would not help."""
        return self.alone if self.gpus and 0 < self.share < 1 else None

    def __str__(self) -> str:
        return f"{self.gpus} GPUs" if self.gpus else f"{self.cpus} CPU cores"
