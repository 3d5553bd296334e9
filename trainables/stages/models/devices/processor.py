"""Read facts about this machine's processor (standard library only).

They come from the kernel's files, not from psutil: stages also run on a machine that has only torch, torchvision, onnx
and onnxruntime, and psutil reports neither the processor's instruction sets nor its name.
"""

import os
import platform
from pathlib import Path

CPUINFO, STAT = Path("/proc/cpuinfo"), Path("/proc/stat")
TICK_S = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01


def processor_name() -> str:
    """Return the processor's name."""
    # Linux on ARM names the board alone, once: "Model : Raspberry Pi 4 Model B Rev 1.4"
    names = (*read_cpuinfo("model name"), *read_cpuinfo("Model"), platform.processor())
    return next(filter(None, names), platform.machine())


def has_vnni() -> bool:
    """Whether this processor multiplies 8-bit integers into 32 bits in one step; False if unknown."""
    # a wrong False costs one bit of the weights, a wrong True overflows
    return any(name in flags for flags in read_cpuinfo("flags") for name in ("avx512_vnni", "avx_vnni"))


def usable_cores() -> list[int]:
    """The numbers of the CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def read_cpuinfo(field: str) -> list[str]:
    """Read a field of /proc/cpuinfo, such as `flags` or `cpu MHz`, for every CPU in order; empty if it is absent."""
    rows = (line.partition(":") for line in (read_kernel_file(CPUINFO) or "").splitlines())
    return [value.strip() for name, _, value in rows if name.strip() == field]


def cpu_seconds() -> tuple[dict[int, float], dict[int, float]]:
    """Read busy seconds and seconds taken by the hypervisor, both by CPU, since boot; empty without /proc/stat."""
    busy, stolen = {}, {}
    for line in (read_kernel_file(STAT) or "").splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _, _, hard, soft, steal = (int(value) * TICK_S for value in values[:8])
            busy[int(name[3:])] = user + nice + system + hard + soft
            stolen[int(name[3:])] = steal
    return busy, stolen


def read_kernel_file(path: Path) -> str | None:
    """Read one of the kernel's text files; None if it does not exist."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
