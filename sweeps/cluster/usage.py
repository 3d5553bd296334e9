"""How busy this machine is: its cores and its GPUs, sampled beside a sweep."""

import os
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

SAMPLE_S = 3.0
STAT = Path("/proc/stat")
MEMORY = Path("/proc/meminfo")
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")


class Usage:
    """Samples every `SAMPLE_S` in a thread of its own, so that a slow `nvidia-smi` holds nobody up."""

    def __init__(self, *, gpus: bool) -> None:
        """Sample nothing yet; `gpus` says whether GPUs are used at all."""
        self._gpus = gpus
        self._before = busy_cores()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.text = ""
        """What was seen last, on one line."""

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._sample, name="usage", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.text = "   ".join([self._cpu(), *([gpu_text()] if self._gpus else [])])

    def _cpu(self) -> str:
        now = busy_cores()
        before, self._before = self._before, now
        if now is None or before is None:
            return "CPU use unknown: no /proc/stat here"
        total = now[1] - before[1]
        share = (now[0] - before[0]) / total if total else 0.0
        used, there = memory_gb(MEMORY.read_text(encoding="ascii"))
        return f"CPU {100 * share:.0f} % of {len(usable_cores())} cores   memory {used:.1f} of {there:.1f} GB"


def usable_cores() -> list[int]:
    """The numbers of the CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def busy_cores() -> tuple[float, float] | None:
    """(busy, all) ticks of the cores this process may use since the machine was started; None where nobody counts."""
    if not STAT.exists():
        return None
    return ticks(STAT.read_text(encoding="ascii"), {f"cpu{core}" for core in usable_cores()})


def ticks(stat: str, cores: set[str]) -> tuple[float, float]:
    """(busy, all) ticks of some cores in the text of `/proc/stat`; waiting for a disk is idle."""
    busy = total = 0.0
    for line in stat.splitlines():
        name, *counts = line.split()
        if name in cores:
            values = [float(count) for count in counts[:8]]  # guest time is in user time already
            total += sum(values)
            busy += sum(values) - values[3] - values[4]
    return busy, total


def memory_gb(meminfo: str) -> tuple[float, float]:
    """(used, all) memory in 10^9 bytes from the text of `/proc/meminfo`."""
    kib: Mapping[str, float] = {
        line.partition(":")[0]: float(line.partition(":")[2].split()[0]) for line in meminfo.splitlines() if ":" in line
    }
    there = kib["MemTotal"]
    return (there - kib["MemAvailable"]) * 1024 / 1e9, there * 1024 / 1e9


def gpu_text() -> str:
    """Use and memory of every GPU, or why that is unknown."""
    if shutil.which(NVIDIA_SMI[0]) is None:
        return "GPU use unknown: no nvidia-smi"
    try:
        done = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=10, check=True)
        return gpus_of(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:  # a GPU cut up by MIG has "[N/A]" for a number
        return f"GPU use unknown: {type(error).__name__}"


def gpus_of(table: str) -> str:
    """What `nvidia-smi` says, on one line.

    Example:
        >>> gpus_of("93, 10240, 143771\\n7, 512, 143771")
        'GPU 93 % 11 GB, 7 % 1 GB'
    """
    rows = [line.split(",") for line in table.strip().splitlines()]
    return "GPU " + ", ".join(f"{int(row[0])} % {float(row[1]) * 2**20 / 1e9:.0f} GB" for row in rows)
