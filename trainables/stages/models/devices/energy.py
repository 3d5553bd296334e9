"""Read how much energy this machine says it has used: its processors through RAPL, or a GPU through NVML (no torch)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainables.stages.models.devices.gpu import find_handle, open_nvml

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, kw_only=True)
class Meter:
    """Counters of energy that only grow, until they start anew."""

    read: Callable[[], Sequence[int]]
    joules: float
    """Of one count."""
    ranges: Sequence[int]
    """Counts after which each starts anew; 0 if it does not."""

    def since(self, before: Sequence[int]) -> float:
        """Joules used since a reading, if no counter has gone round more than once."""
        pairs = zip(before, self.read(), self.ranges, strict=True)
        return self.joules * sum((now - then) % span if span else now - then for then, now, span in pairs)


@contextmanager
def open_meter(*, on_gpu: bool) -> Iterator[Meter | None]:
    """Open the meter of all processors, or of the first GPU; yield None if the machine does not tell."""
    if not on_gpu:
        yield open_rapl()
        return
    with open_nvml() as nvml:
        if nvml is None:
            yield None
            return
        try:
            handle = find_handle(nvml, 0)
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError:  # not before the Volta generation
            yield None
            return
        yield Meter(read=lambda: (nvml.nvmlDeviceGetTotalEnergyConsumption(handle),), joules=1e-3, ranges=(0,))


def open_rapl(powercap: Path = POWERCAP) -> Meter | None:
    """The meter of all processor packages, from the kernel's `intel-rapl` (AMD's as well); None if it may not be read.

    Memory that is metered apart, and the platform's own meter, do not count. Kernels since 2020 let root alone read.
    """
    try:
        zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _text(zone / "name").startswith("package")]
        ranges = [int(_text(zone / "max_energy_range_uj")) for zone in zones]
        counters = [zone / "energy_uj" for zone in zones]
        for counter in counters:
            _text(counter)
    except OSError:
        return None
    if not zones:
        return None
    return Meter(read=lambda: [int(_text(counter)) for counter in counters], joules=1e-6, ranges=ranges)


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
