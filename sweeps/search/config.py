"""What one sweep is: candidate, space, exchange rates, devices. Presets are functions that return one."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution

from sweeps.search.space import default_space, size
from trainables.config.candidate import CandidateConfig
from trainables.config.limits import Limits
from trainables.config.score import ExchangeRates
from trainables.layout import sweep_folder

OBJECTIVES = ("composite", "pareto")
STOPPERS = {"front": "pareto", "score": "composite", "off": None}
AUTO = "auto"
ADDRESS = re.compile(r"auto|[A-Za-z0-9._-]+:[0-9]{1,5}|\[[0-9a-fA-F:]+\]:[0-9]{1,5}")
STORAGE = re.compile(r"/.*|[a-z][a-z0-9+]*://[^?#\s]+")
SAMPLERS = ("tpe", "nsga2", "gp", "random", "grid")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep: what is searched, how long, on what, and where everything goes."""

    name: str
    """Names the sweep in the output folder, Optuna and MLflow; the same name goes on where it stopped."""
    out: Path = Path("runs")
    """Folder that holds everything: mlflow.db, artifacts/, store/, sweeps/NAME/."""
    data_dir: Path = Path("data")
    """Downloads and decoded images."""
    tracking_uri: str | None = None
    """MLflow server or database; None is OUT/mlflow.db."""
    address: str | None = None
    """Ray cluster to join: HOST:PORT, `auto` for the one of this machine, or `none`; unset, what RAY_ADDRESS says (`ray
    job submit` sets it), else none: then a Ray of the sweep's own runs on this machine."""
    storage: str | None = None
    """What all nodes share, stored stages and results on their way to the driver: a folder that has this path on every
    node, or a URL such as s3://bucket/runs; unset, OUT itself, which a cluster must then see on every node."""
    trials: int = 30
    """Finished trials in all, those of earlier runs under this name included."""
    gpus: int = 0
    """GPUs to use; 0 trains on the CPU."""
    gpus_per_trial: float | str = 1.0
    """Share of a GPU a trial gets, up to 1, or a whole number of GPUs; `auto` measures which share gives the most
    images a second in all."""
    mps: bool = False
    """Run NVIDIA's Multi-Process Service, on every node, while the sweep runs: trials on one GPU compute at the same
    time, not in turn."""
    cpus: int = 1
    """CPU cores to use."""
    cpus_per_trial: int | str = 1
    """CPU cores a trial gets where it trains on the CPU; `auto` measures, at every start, which number gives the most
    images a second in all."""
    base: CandidateConfig = field(default_factory=CandidateConfig)
    """What the space does not vary."""
    space: Mapping[str, BaseDistribution] = field(default_factory=default_space)
    rates: ExchangeRates = field(default_factory=ExchangeRates)
    limits: Limits = field(default_factory=Limits)
    """What a candidate must keep to."""
    objective: str = "pareto"
    """`pareto` gives Optuna accuracy, latency and size, and finds the front sooner; `composite` one score, and finds
    the best score sooner."""
    sampler: str = "tpe"
    """Who proposes: `tpe`, `nsga2`, `gp`, `random` or `grid` (every combination once)."""
    search_seed: int = 0
    """Of the sampler."""
    reuse_probability: float = 0.25
    """Share of trials that keep the distillation of a promising student in the store and vary only its pruning."""
    stopper: str = "front"
    """Who ends trials early: `front` (others are more accurate at no more latency and size), `score` (others have a
    higher score; cheaper, and thins the front out) or `off`."""
    champions: int = 0
    """Front members worth most (hypervolume) to train again, beside control arms, when the search is over; 0 is off."""
    seeds: int = 3
    """Training seeds of every champion and control arm, one run each; two or more give intervals."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise ValueError(f"name={self.name!r} may hold only letters, digits, '.', '_' and '-'.")
        if self.address is not None and not ADDRESS.fullmatch(self.address):
            raise ValueError(f"address={self.address!r} must be auto, none or HOST:PORT, such as 10.0.0.1:6379.")
        if self.storage is not None and not STORAGE.fullmatch(self.storage):
            raise ValueError(f"storage={self.storage!r} must be an absolute folder or a URL such as s3://bucket/runs.")
        if isinstance(self.cpus_per_trial, str) and self.cpus_per_trial != AUTO:
            raise ValueError(f"cpus_per_trial={self.cpus_per_trial!r} must be a whole number or {AUTO}.")
        if self.cpus_per_trial == AUTO and (self.gpus or self.address):
            where = f"gpus={self.gpus}" if self.gpus else f"address={self.address}"
            raise ValueError(f"cpus_per_trial={AUTO} measures trials on this machine's cores, but got {where}.")
        if self.gpus_per_trial == AUTO and self.address:
            raise ValueError(f"gpus_per_trial={AUTO} measures on this machine's GPU, but got address={self.address}.")
        for name, value in (("trials", self.trials), ("cpus", self.cpus), ("seeds", self.seeds)):
            if value < 1:
                raise ValueError(f"`{name} >= 1` must hold, but got {name}={value}.")
        if not 1 <= self.cores_per_trial <= self.cpus:
            per_trial = f"cpus_per_trial={self.cores_per_trial}"
            raise ValueError(f"`1 <= cpus_per_trial <= cpus` must hold, but got {per_trial} and cpus={self.cpus}.")
        for name, known in (("objective", OBJECTIVES), ("sampler", SAMPLERS), ("stopper", tuple(STOPPERS))):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, but got {name}={getattr(self, name)!r}.")
        if self.champions < 0:
            raise ValueError(f"`champions >= 0` must hold, but got champions={self.champions}.")
        if not 0 <= self.search_seed < 2**31:
            raise ValueError(f"`0 <= search_seed < 2**31` must hold, but got search_seed={self.search_seed}.")
        if self.sampler == "grid" and not math.isfinite(size(self.space)):
            raise ValueError(
                "sampler='grid' needs lists or stepped ranges; give learning_rate as a list such as 1e-3,3e-3."
            )
        if not 0 <= self.reuse_probability <= 1:
            raise ValueError(
                f"`0 <= reuse_probability <= 1` must hold, but got reuse_probability={self.reuse_probability}."
            )
        if self.gpus < 0:
            raise ValueError(f"`gpus >= 0` must hold, but got gpus={self.gpus}.")
        if isinstance(self.gpus_per_trial, str) and self.gpus_per_trial != AUTO:
            raise ValueError(f"gpus_per_trial={self.gpus_per_trial!r} must be a number or {AUTO}.")
        if self.mps and not self.gpus:
            raise ValueError(f"mps=True needs GPUs, but got gpus={self.gpus}.")
        share = self.share
        if not (0 < share <= 1 or (math.isfinite(share) and share == int(share) >= 1)):
            raise ValueError(f"gpus_per_trial={share} must be a share in (0, 1] or a whole number.")
        if self.gpus and share > self.gpus:
            raise ValueError(
                f"`gpus_per_trial <= gpus` must hold, but got gpus_per_trial={share} and gpus={self.gpus}."
            )

    @property
    def folder(self) -> Path:
        """OUT/sweeps/NAME."""
        return sweep_folder(self.out, self.name)

    @property
    def device(self) -> str:
        """Where trials train: `cpu` or `cuda`."""
        return "cuda" if self.gpus else "cpu"

    @property
    def concurrency(self) -> int:
        """Trials that run at once."""
        if not self.gpus:
            return self.cpus // self.cores_per_trial
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
        """What Ray reserves for a trial."""
        if not self.gpus:
            return {"cpu": self.cores_per_trial}
        return {
            "cpu": self.cpus / self.concurrency if self.cpus < self.concurrency else self.threads,
            "gpu": self.share,
        }

    @property
    def alone(self) -> dict[str, float]:
        """What Ray reserves for a trial that has run out of memory beside others: at least a whole GPU."""
        return self.resources | {"gpu": max(1.0, self.share)}

    @property
    def threads(self) -> int:
        """CPU threads a trial may use, so that all that run at once do not fight over cores."""
        return max(1, self.cpus // self.concurrency)

    def identity(self) -> dict[str, Any]:
        """What may not change under one name: everything that decides what a trial's numbers mean."""
        varied = set(self.space)
        fixed = {name: value for name, value in self.base.flat().items() if name not in varied}
        return {
            "base": fixed,
            "space": {name: str(values) for name, values in self.space.items()},
            "rates": vars(self.rates),
            "limits": vars(self.limits),
            "objective": {"objective": self.objective},
        }
