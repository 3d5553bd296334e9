"""The settings of one sweep: what it searches, on which devices, where files go, what is trained again at the end."""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution

from sweeps.search.devices import Devices
from sweeps.search.objectives import ExchangeRates
from sweeps.search.space import default_space, size
from trainables.config.candidate import CandidateConfig
from trainables.config.checks import check_word
from trainables.config.limits import Limits
from trainables.layout import sweep_folder

OBJECTIVES = ("composite", "pareto")
STOPPERS = {"front": "pareto", "score": "composite", "off": None}
STORAGE = re.compile(r"/.*|[a-z][a-z0-9+]*://[^?#\s]+")
SAMPLERS = ("tpe", "nsga2", "gp", "random", "grid")


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a sweep's files are."""

    out: Path = Path("runs")
    """Folder that holds everything: mlflow.db, artifacts/, store/, sweeps/NAME/."""
    data_dir: Path = Path("data")
    """Downloads and decoded images."""
    tracking_uri: str | None = None
    """MLflow server or database (default: OUT/mlflow.db)."""
    storage: str | None = None
    """What all nodes share, stored stages and results on their way to the driver: a folder that has this path on every
    node, or a URL such as s3://bucket/runs (default: OUT itself, which a cluster must then see on every node)."""

    def __post_init__(self) -> None:
        if self.storage is not None and not STORAGE.fullmatch(self.storage):
            raise ValueError(f"storage={self.storage!r} must be an absolute folder or a URL such as s3://bucket/runs.")


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched, and how."""

    trials: int = 30
    """Finished trials in all, those of earlier runs under this name included."""
    base: CandidateConfig = field(default_factory=CandidateConfig)
    """What the space does not vary."""
    space: Mapping[str, BaseDistribution] = field(default_factory=default_space)
    objective: str = "pareto"
    """`pareto` gives Optuna accuracy, latency and size, and finds the front sooner; `composite` one score, and finds
    the best score sooner."""
    sampler: str = "tpe"
    """Who proposes trials; `grid` takes every combination once."""
    search_seed: int = 0
    """Of the sampler."""
    reuse_probability: float = 0.25
    """Share of trials that keep the distillation of a promising student in the store and vary only its pruning."""
    stopper: str = "front"
    """Who ends trials early: `front` (others are more accurate at no more latency and size), `score` (others have a
    higher score; cheaper, and thins the front out) or `off`."""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"`trials >= 1` must hold, but got trials={self.trials}.")
        check_word("objective", self.objective, OBJECTIVES)
        check_word("sampler", self.sampler, SAMPLERS)
        check_word("stopper", self.stopper, tuple(STOPPERS))
        if not 0 <= self.search_seed < 2**31:
            raise ValueError(f"`0 <= search_seed < 2**31` must hold, but got search_seed={self.search_seed}.")
        if self.sampler == "grid" and not math.isfinite(size(self.space, self.base)):
            raise ValueError(
                "sampler='grid' needs lists or stepped ranges; give learning_rate as a list such as 1e-3,3e-3."
            )
        if not 0 <= self.reuse_probability <= 1:
            raise ValueError(
                f"`0 <= reuse_probability <= 1` must hold, but got reuse_probability={self.reuse_probability}."
            )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is trained again after the search, to show what distillation and pruning were worth."""

    champions: int = 0
    """Front members worth most (hypervolume) to train again, beside control arms, when the search is over; 0 is off."""
    seeds: int = 3
    """Training seeds of every champion and control arm, one run each; two or more give intervals."""

    def __post_init__(self) -> None:
        if self.champions < 0:
            raise ValueError(f"`champions >= 0` must hold, but got champions={self.champions}.")
        if self.seeds < 1:
            raise ValueError(f"`seeds >= 1` must hold, but got seeds={self.seeds}.")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The settings of one sweep. Field names are unique across its parts, so that each is one flag."""

    name: str
    """Names the sweep in the output folder, Optuna and MLflow; the same name goes on where it stopped."""
    places: Places = field(default_factory=Places)
    devices: Devices = field(default_factory=Devices)
    search: Search = field(default_factory=Search)
    selection: Selection = field(default_factory=Selection)
    rates: ExchangeRates = field(default_factory=ExchangeRates)
    limits: Limits = field(default_factory=Limits)
    """What a candidate must keep to."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise ValueError(f"name={self.name!r} may hold only letters, digits, '.', '_' and '-'.")

    def replace(self, **changes: Any) -> "SweepConfig":
        """A copy with changed fields; fields of parts are named directly.

        Raises:
            ValueError: if a name is not a field of any part, or a value is out of its range.
        """
        parts = vars(self) | {part.name: changes.pop(part.name) for part in fields(self) if part.name in changes}
        for name in PARTS:
            own = {f.name: changes.pop(f.name) for f in fields(parts[name]) if f.name in changes}
            parts[name] = dataclasses.replace(parts[name], **own) if own else parts[name]
        if changes:
            raise ValueError(f"Unknown fields of a sweep: {', '.join(sorted(changes))}.")
        return SweepConfig(**parts)

    @property
    def folder(self) -> Path:
        """OUT/sweeps/NAME."""
        return sweep_folder(self.places.out, self.name)

    def identity(self) -> dict[str, Any]:
        """The settings that must not change under one name: all that decide what a trial's numbers mean."""
        search = self.search
        fixed = {name: value for name, value in search.base.flat().items() if name not in search.space}
        return {
            "base": fixed,
            "space": {name: str(values) for name, values in search.space.items()},
            "rates": vars(self.rates),
            "limits": vars(self.limits),
            "objective": {"objective": search.objective},
        }


# Parts of a `SweepConfig` whose fields are flags, in the order of --help.
PARTS: Mapping[str, type[Any]] = {
    "search": Search,
    "selection": Selection,
    "places": Places,
    "devices": Devices,
    "rates": ExchangeRates,
    "limits": Limits,
}
