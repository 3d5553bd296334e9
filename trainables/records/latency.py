"""How long one file takes and under what conditions that was found out (standard library only)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConditionsRecord:
    """The machine while a latency was taken; None where the system does not tell."""

    cores: tuple[int, ...]
    """Logical CPUs that the measuring process was bound to; empty where it cannot be bound."""
    seconds: float
    """How long was measured."""
    nice: int
    """Priority of the process, 0 is normal."""
    load_1m: float
    """Load average of the last minute, at the end."""
    cpu_mhz: float | None = None
    """Mean clock of those CPUs at the end; what the kernel says, in a virtual machine often the nominal one."""
    waited_share: float | None = None
    """Of the measured time, what the process was ready to run and others ran in its place."""
    others_share: float | None = None
    """Of the time of its CPUs, what everybody else used, interrupts included; counted in ticks of 10 ms."""
    steal_share: float | None = None
    """Of the time of its CPUs, what the hypervisor gave to other machines."""
    elsewhere_share: float | None = None
    """Of the time of all other CPUs, what was used: caches, memory and clock are shared with those."""
    drift: float | None = None
    """By how much of its own p50 the reference took longer in this alternation; negative if it was faster."""
    memory_stall_share: float | None = None
    """Of the measured time, what somebody on the machine waited for memory to be freed."""
    busiest: str = ""
    """The other process that used most CPU time meanwhile, and how much."""
    gpu_mhz: float | None = None
    """Clock of the GPU's multiprocessors at the end."""
    gpu_celsius: float | None = None
    gpu_throttled: str = ""
    """Why the GPU held its clock down at the end, as NVML names it; empty if it did not."""
    gpu_contexts: int | None = None
    """Processes with a context on the GPU at the end, this one and paused ones included."""
    gpu_others_share: float | None = None
    """Of the time just before, while this process was idle, what others used the GPU."""

    def metrics(self) -> dict[str, float]:
        """The numbers among them, those that are known, by the names they have in MLflow."""
        words = ("cores", "busiest", "gpu_throttled")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in words}
        values["timed_s"] = values.pop("seconds")  # `latency_seconds` is the setting that bounds it
        return {f"latency_{name}": float(value) for name, value in values.items() if value is not None}


def doubts(metrics: Mapping[str, float]) -> list[str]:
    """What speaks against a latency, from a record's metrics: `noisy`, `contaminated`, both or nothing."""
    return [word for word in ("noisy", "contaminated") if metrics.get(f"latency_{word}")]


HALF_WIDTH = 0.02
"""Of the 95 % interval of p50, as a share of it: a wider one is noisy."""


@dataclass(frozen=True, kw_only=True)
class LatencyRecord:
    """Latency of one image through one file, milliseconds.

    Percentiles are corrected for drift: what was measured times the square root of (the reference file's own p50 / its
    p50 in alternation with this file), so that a slow minute of the machine makes a file look half as slow at most.
    `latency_raw_p50_ms` is what the clock said.
    """

    latency_p50_ms: float
    latency_p90_ms: float
    latency_p99_ms: float
    latency_raw_p50_ms: float
    """As measured, drift included."""
    latency_p90_bound_ms: float | None
    """The 90th percentile is below this with 99 % confidence, whatever the distribution; None under 44 runs."""
    latency_n: int
    """Timed runs."""
    latency_half_width: float
    """Of the 95 % block-bootstrap interval of p50, relative to p50."""
    latency_noisy: bool
    """Whether the time limit came before that half-width was within 2 %, before 8 blocks or before warm-up had settled;
    of a scale, whether no two processes agreed."""
    latency_device: str
    """What it ran on, such as `cpu:1` for one CPU thread."""
    latency_provider: str
    """The execution provider that the session really used."""
    latency_contaminated: str = ""
    """Why the machine was not quiet, even in the best attempt; empty if it was."""
    latency_attempts: int = 1
    """Fresh processes that measured it; more than one if others disturbed."""
    latency_alone_s: float = 0.0
    """Seconds that everybody else on the device had to pause for it, all attempts."""
    conditions: ConditionsRecord | None = None
    """None for what is timed outside the clean room."""

    def scaled(self, factor: float) -> "LatencyRecord":
        """With percentiles times `factor`; the raw one stays."""
        bound = self.latency_p90_bound_ms
        return dataclasses.replace(
            self,
            latency_p50_ms=factor * self.latency_p50_ms,
            latency_p90_ms=factor * self.latency_p90_ms,
            latency_p99_ms=factor * self.latency_p99_ms,
            latency_p90_bound_ms=None if bound is None else factor * bound,
        )

    def metrics(self) -> dict[str, float]:
        """Every number by the name it has in Optuna, MLflow and CSV; yes is 1, no is 0."""
        words = ("latency_device", "latency_provider", "conditions", "latency_contaminated")
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in words}
        row["latency_contaminated"] = bool(self.latency_contaminated)
        known = {name: float(value) for name, value in row.items() if value is not None}
        return known | (self.conditions.metrics() if self.conditions else {})

    def tags(self) -> dict[str, str]:
        """What it was taken on, and whether it can be trusted."""
        tags = {"latency_device": self.latency_device, "latency_provider": self.latency_provider}
        if self.conditions is not None and self.conditions.cores:
            tags["latency_cores"] = ",".join(map(str, self.conditions.cores))
        return tags | {"latency_verdict": self.verdict}

    @property
    def verdict(self) -> str:
        """`clean`, or what is wrong with it."""
        wide = self.latency_half_width > HALF_WIDTH
        why = f"p50 within {100 * self.latency_half_width:.1f} %" if wide else "too few runs, or not yet steady"
        noisy = f"noisy: {why}" if self.latency_noisy else ""
        contaminated = f"contaminated: {self.latency_contaminated}" if self.latency_contaminated else ""
        return "; ".join(filter(None, (noisy, contaminated))) or "clean"
