"""The latency of one file and the conditions under which it was measured (standard library only)."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    """Share of the kept blocks' time during which the process was runnable but not scheduled."""
    others_share: float | None = None
    """Share of its CPUs' time that others and interrupts used without making it wait; counted in ticks of 10 ms."""
    steal_share: float | None = None
    """Share of its CPUs' time that the hypervisor gave to other virtual machines."""
    elsewhere_share: float | None = None
    """Share of all other CPUs' time that was used: they share caches, memory and clock with its own."""
    clock_share: float | None = None
    """Share of the file's blocks that were slow while fixed multiplications in the L1 cache were slow as well."""
    memory_share: float | None = None
    """Share of the file's blocks that were slow while copying memory was slow as well."""
    waited_blocks_share: float | None = None
    """Share of the file's blocks that were dropped because others ran in the process's place."""
    clock_probe_ms: float | None = None
    """Time of those multiplications at the speed that they mostly had."""
    clock_behind: float | None = None
    """How much longer they took than they usually do on this machine, relative to that; None while nobody knows."""
    memory_probe_ms: float | None = None
    """Time of that copy at the speed that it mostly had."""
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


# Half-width of the 95 % interval of p50, relative to p50: a wider one is not clean.
HALF_WIDTH = 0.02
# Share of the time allowed that is enough for a file whose shape was measured before, and for a shape without a limit.
KNOWN_SHARE = 0.25
CLEAN = "clean"


@dataclass(frozen=True, kw_only=True)
class LatencyRecord:
    """Latency of one image through one file, in milliseconds, as the clock said it: nothing is corrected."""

    latency_p50_ms: float
    latency_p90_ms: float
    latency_p99_ms: float
    latency_p90_bound_ms: float | None
    """Upper bound of the 90th percentile at 99 % confidence, for any distribution; None under 44 runs."""
    latency_n: int
    """Timed runs, those of dropped blocks excluded."""
    latency_half_width: float
    """Half-width of the 95 % block-bootstrap interval of p50, relative to p50."""
    latency_device: str
    """The device it ran on, such as `cpu:1` for one CPU thread."""
    latency_provider: str
    """The execution provider that the session actually used."""
    latency_doubt: str = ""
    """What is wrong with it, a short name and after a colon the facts; empty if nothing is."""
    latency_disturbed: bool = False
    """Whether that came from outside, so that measuring again may help; else the file or the time allowed is why."""
    latency_attempts: int = 1
    """Fresh processes that measured it; more than one if other processes disturbed the first."""
    latency_alone_s: float = 0.0
    """Seconds for which all other work on the device was paused, over all attempts; 0 if it was found in the store."""
    energy_per_image_mj: float | None = None
    """Millijoules that all processor packages, or the GPU, used for an image, idle power included; None if the machine
    does not tell."""
    conditions: ConditionsRecord | None = None
    """None for files timed outside the clean room."""

    def metrics(self) -> dict[str, float]:
        """Every number by its name in Optuna, MLflow and CSV; true is 1, false is 0."""
        # MLflow metrics are numbers: the texts go into `tags` and `verdict`
        words = ("latency_device", "latency_provider", "conditions", "latency_doubt", "latency_disturbed")
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in words}
        row["latency_clean"] = not self.latency_doubt
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
        """`clean`, or the one reason to distrust it."""
        return self.latency_doubt or CLEAN


def doubt(tags: Mapping[str, str]) -> str:
    """The short name of what is wrong with a trial's latency, from its record's tags; empty if nothing is.

    Records of older versions name `noisy` or `contaminated`.
    """
    name = tags.get("latency_verdict", CLEAN).partition(":")[0]
    return "" if name == CLEAN else name


def teacher_ratio(metrics: Mapping[Any, float]) -> float:
    """A file's time by the teacher's: from their pairs, or of two p50 in records of older versions and of shapes."""
    paired = metrics.get("latency_vs_teacher", math.nan)
    return paired if paired == paired else metrics["latency_p50_ms"] / metrics["reference_latency_p50_ms"]
