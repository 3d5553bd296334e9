"""The latency of one file and the conditions under which it was measured (standard library only)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConditionsRecord:
    """The state of the machine during a latency measurement; None where the system does not report it."""

    cores: tuple[int, ...]
    """Logical CPUs that the measuring process was pinned to; empty where pinning is not possible."""
    seconds: float
    """Duration of the measurement."""
    nice: int
    """Nice value of the process; 0 is normal."""
    load_1m: float
    """One-minute load average at the end."""
    cpu_mhz: float | None = None
    """Mean clock of those CPUs at the end, as the kernel reports it; in a virtual machine often the nominal clock."""
    waited_share: float | None = None
    """Share of the measured time during which the process was runnable but not scheduled."""
    others_share: float | None = None
    """Share of its CPUs' time that other processes and interrupts used; counted in ticks of 10 ms."""
    steal_share: float | None = None
    """Share of its CPUs' time that the hypervisor gave to other virtual machines."""
    elsewhere_share: float | None = None
    """Share of all other CPUs' time that was used: they share caches, memory and clock with its own."""
    drift: float | None = None
    """Slowdown of the reference file in this alternation, relative to its own p50; negative if it was faster."""
    memory_stall_share: float | None = None
    """Share of the measured time during which some process on the machine waited for memory to be freed."""
    busiest: str = ""
    """The other process that used the most CPU time during the measurement, and how much."""
    gpu_mhz: float | None = None
    """Clock of the GPU's streaming multiprocessors at the end."""
    gpu_celsius: float | None = None
    gpu_throttled: str = ""
    """Why the GPU throttled its clock at the end, in NVML's words; empty if it did not."""
    gpu_contexts: int | None = None
    """Processes with a context on the GPU at the end, including this one and paused ones."""
    gpu_others_share: float | None = None
    """Share of the time just before, while this process was idle, during which others used the GPU."""

    def metrics(self) -> dict[str, float]:
        """The known numeric conditions, by their MLflow metric names."""
        words = ("cores", "busiest", "gpu_throttled")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in words}
        values["timed_s"] = values.pop("seconds")  # `latency_seconds` is the setting that bounds it
        return {f"latency_{name}": float(value) for name, value in values.items() if value is not None}


def doubts(metrics: Mapping[str, float]) -> list[str]:
    """The reasons to distrust a latency, from a record's metrics: `noisy`, `contaminated`, both or none."""
    return [word for word in ("noisy", "contaminated") if metrics.get(f"latency_{word}")]


# Half-width of the 95 % interval of p50, relative to p50: a wider one is called noisy.
HALF_WIDTH = 0.02


@dataclass(frozen=True, kw_only=True)
class LatencyRecord:
    """Latency of one image through one file, in milliseconds.

    Percentiles are corrected for drift: the measured value times the square root of (the reference file's own p50 / its
    p50 in alternation with this file), so that a file looks at most half as slow because the machine had a slow minute.
    `latency_raw_p50_ms` is the uncorrected time.
    """

    latency_p50_ms: float
    latency_p90_ms: float
    latency_p99_ms: float
    latency_raw_p50_ms: float
    """As measured, drift included."""
    latency_p90_bound_ms: float | None
    """Upper bound of the 90th percentile at 99 % confidence, for any distribution; None under 44 runs."""
    latency_n: int
    """Timed runs."""
    latency_half_width: float
    """Half-width of the 95 % block-bootstrap interval of p50, relative to p50."""
    latency_noisy: bool
    """Whether time ran out before the half-width was within 2 %, before 8 blocks, or before warm-up had settled; for
    the teacher's own p50, whether no two processes agreed."""
    latency_device: str
    """The device it ran on, such as `cpu:1` for one CPU thread."""
    latency_provider: str
    """The execution provider that the session actually used."""
    latency_contaminated: str = ""
    """Why the machine was not quiet, even in the best attempt; empty if it was."""
    latency_attempts: int = 1
    """Fresh processes that measured it; more than one if other processes disturbed the first."""
    latency_alone_s: float = 0.0
    """Seconds for which all other work on the device was paused, over all attempts."""
    conditions: ConditionsRecord | None = None
    """None for files timed outside the clean room."""

    def scaled(self, factor: float) -> "LatencyRecord":
        """A copy with percentiles multiplied by `factor`; the raw p50 stays."""
        bound = self.latency_p90_bound_ms
        return dataclasses.replace(
            self,
            latency_p50_ms=factor * self.latency_p50_ms,
            latency_p90_ms=factor * self.latency_p90_ms,
            latency_p99_ms=factor * self.latency_p99_ms,
            latency_p90_bound_ms=None if bound is None else factor * bound,
        )

    def metrics(self) -> dict[str, float]:
        """Every number by its name in Optuna, MLflow and CSV; true is 1, false is 0."""
        # MLflow metrics are numbers: the texts go into `tags` and `verdict`
        words = ("latency_device", "latency_provider", "conditions", "latency_contaminated")
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in words}
        row["latency_contaminated"] = bool(self.latency_contaminated)
        known = {name: float(value) for name, value in row.items() if value is not None}
        return known | (self.conditions.metrics() if self.conditions else {})

    def tags(self) -> dict[str, str]:
        """The device it was measured on, and whether it can be trusted."""
        tags = {"latency_device": self.latency_device, "latency_provider": self.latency_provider}
        if self.conditions is not None and self.conditions.cores:
            tags["latency_cores"] = ",".join(map(str, self.conditions.cores))
        return tags | {"latency_verdict": self.verdict}

    @property
    def verdict(self) -> str:
        """`clean`, or the reasons to distrust it."""
        wide = self.latency_half_width > HALF_WIDTH
        why = f"p50 within {100 * self.latency_half_width:.1f} %" if wide else "too few runs, or not yet steady"
        noisy = f"noisy: {why}" if self.latency_noisy else ""
        contaminated = f"contaminated: {self.latency_contaminated}" if self.latency_contaminated else ""
        return "; ".join(filter(None, (noisy, contaminated))) or "clean"
