"""Observe what else the machine does during a measurement, and name what disturbed it (no torch)."""

import contextlib
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainables.records.latency import ConditionsRecord
from trainables.stages.models.devices.gpu import GpuState
from trainables.stages.models.devices.processor import TICK_S, cpu_seconds, read_cpuinfo, read_kernel_file

PROC, CPUS = Path("/proc"), Path("/sys/devices/system/cpu")

# Time spent runnable but not running. If all of it falls on timed runs, their mean grows by this share, which must stay
# within the 2 % aimed at for p50.
WAITED_LIMIT = 0.02
# The same, one level below: time in which the hypervisor ran other machines.
STEAL_LIMIT = 0.02
# Looser than WAITED_LIMIT because ticks are coarse: in one second, two ticks of 10 ms are 2 %. Catches interrupts and
# processes that run while our threads sleep. Of this and of the hypervisor's time the first tick does not count: a
# counter that stood just below its next one moves by 5 % of a measurement of 0.2 s for a moment's work.
OTHERS_LIMIT = 0.05
# When a quarter of the other CPUs are busy, they compete for caches, memory and clock; single daemons stay below.
ELSEWHERE_LIMIT = 0.25
# A machine that reclaims memory stops processes for milliseconds at a time, which would dominate p99.
MEMORY_STALL_LIMIT = 0.01
# Kernels of other processes run before ours: as with WAITED_LIMIT.
GPU_OTHERS_LIMIT = 0.02
# The whole measurement fell into a slow spell of the machine: files have been 1.3 times as slow in one.
BEHIND_LIMIT = 0.1
# Blocks of the file that were slow beside a slow probe: up to a quarter is dropped, more is no clean measurement.
PROBED_LIMIT = 0.25
CPU_SHARED, MACHINE_BUSY = "CPU shared", "machine busy"
# What another process does: its name helps whoever wants it quiet.
BY_A_PROCESS = (CPU_SHARED, MACHINE_BUSY)


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Seconds used since boot, as the kernel counts them; empty or None where it does not count."""

    at: float
    """Seconds of a monotonic clock."""
    busy: Mapping[int, float] = field(default_factory=dict)
    """CPU -> time in user, nice, system and interrupts."""
    stolen: Mapping[int, float] = field(default_factory=dict)
    """CPU -> time that the hypervisor took away."""
    own_s: float = 0.0
    """CPU time of this process, all threads."""
    waited_s: float | None = None
    """Time that this process's threads were runnable but not running."""
    memory_stall_s: float | None = None
    """Time that some process stalled for memory."""
    processes: Mapping[int, tuple[str, int, float]] = field(default_factory=dict)
    """Other processes: pid -> name, last CPU, CPU seconds."""

    @classmethod
    def now(cls, *, processes: bool = True) -> "Counters":
        """Read all counters; takes a few milliseconds on a machine with hundreds of processes."""
        others = _processes() if processes else {}
        busy, stolen = cpu_seconds()
        return cls(
            at=time.monotonic(),
            busy=busy,
            stolen=stolen,
            own_s=time.process_time(),
            waited_s=waited_s(),
            memory_stall_s=_memory_stall_s(),
            processes=others,
        )


def conditions(
    before: Counters,
    after: Counters,
    cores: Collection[int],
    *,
    gpu: GpuState | None = None,
    gpu_others_share: float | None = None,
) -> ConditionsRecord:
    """What the machine did between two readings, for a process bound to `cores` (empty: all CPUs are its own)."""
    seconds = max(after.at - before.at, 1e-9)
    ours = sorted(cores) or sorted(after.busy)
    rest = [core for core in after.busy if core not in ours]
    busy = {core: after.busy[core] - before.busy.get(core, 0.0) for core in after.busy}
    stolen = sum(after.stolen[core] - before.stolen.get(core, 0.0) for core in ours if core in after.stolen)
    waited = 0.0 if before.waited_s is None or after.waited_s is None else after.waited_s - before.waited_s
    # What made this process wait is counted to the nanosecond; the rest ran while it slept, or interrupted it.
    own = after.own_s - before.own_s + waited
    # Without counters of all our CPUs the difference to our own time would mean nothing.
    known = bool(busy) and all(core in busy for core in ours)
    span = seconds * max(len(ours), 1)
    return ConditionsRecord(
        cores=tuple(sorted(cores)),
        seconds=seconds,
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        load_1m=os.getloadavg()[0],
        cpu_mhz=_mhz(ours),
        waited_share=_rate(before.waited_s, after.waited_s, span),
        others_share=max(0.0, sum(busy[core] for core in ours) - own - TICK_S) / span if known else None,
        steal_share=max(0.0, stolen - TICK_S) / span if known else None,
        elsewhere_share=sum(busy[core] for core in rest) / (seconds * len(rest)) if rest else None,
        memory_stall_share=_rate(before.memory_stall_s, after.memory_stall_s, seconds),
        busiest=_busiest(before, after, ours),
        gpu_mhz=gpu.mhz if gpu else None,
        gpu_celsius=gpu.celsius if gpu else None,
        gpu_throttled=gpu.throttled if gpu else "",
        gpu_contexts=gpu.contexts if gpu else None,
        gpu_others_share=gpu_others_share,
    )


def disturbed_by(seen: ConditionsRecord) -> str:
    """The worst disturbance, as `NAME: facts`; empty if the machine was quiet.

    Counters that the system lacks count as quiet.
    """
    if seen.gpu_throttled:
        return f"GPU throttled: {seen.gpu_throttled}"
    share, limit, name, facts = max(_rules(seen), key=lambda rule: rule[0] / rule[1], default=(0.0, 1.0, "", ""))
    if share <= limit:
        return ""
    who = f"; {seen.busiest}" if name in BY_A_PROCESS and seen.busiest else ""
    return f"{name}: {facts.format(f'{100 * share:.0f} %')}{who}"


def disturbance(seen: ConditionsRecord) -> float:
    """The worst share as a multiple of its limit, for comparing attempts; 0 if nothing is known."""
    return max((share / limit for share, limit, *_ in _rules(seen)), default=0.0) + bool(seen.gpu_throttled)


def _rules(seen: ConditionsRecord) -> list[tuple[float, float, str, str]]:
    """(share, limit, name, facts) of every share that is known."""
    slow = "{} of its blocks were slow, and with them"
    rules = (
        (seen.waited_share, WAITED_LIMIT, CPU_SHARED, "others ran in its place for {} of the time"),
        (seen.steal_share, STEAL_LIMIT, "CPU stolen", "the hypervisor ran other machines for {} of the time"),
        (seen.others_share, OTHERS_LIMIT, CPU_SHARED, "others used {} of its CPUs' time besides"),
        (seen.elsewhere_share, ELSEWHERE_LIMIT, MACHINE_BUSY, "{} of the other CPUs' time was used"),
        (seen.memory_stall_share, MEMORY_STALL_LIMIT, "memory short", "processes waited for it {} of the time"),
        (seen.gpu_others_share, GPU_OTHERS_LIMIT, "GPU shared", "others used it {} of the time"),
        (seen.clock_share, PROBED_LIMIT, "clock unsteady", f"{slow} multiplications that need no memory"),
        (
            seen.clock_behind,
            BEHIND_LIMIT,
            "clock slow",
            "multiplications that need no memory took {} longer than usual",
        ),
        (seen.memory_share, PROBED_LIMIT, "memory busy", f"{slow} copying memory"),
    )
    return [(share, limit, name, facts) for share, limit, name, facts in rules if share is not None]


def bind(threads: int, *, sample_s: float = 0.03) -> tuple[int, ...]:
    """Bind all threads of this process to the `threads` idlest CPUs it may use, and return those CPUs.

    Fast cores come first where the kernel reports a difference, then CPUs that were idle during `sample_s` of our own
    sleep, then one CPU of every physical core before its hyper-thread twin, then the highest numbers, because
    interrupts go to the lowest. Returns nothing where the system cannot bind.
    """
    if not hasattr(os, "sched_setaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    before, _ = cpu_seconds()
    time.sleep(sample_s)
    after, _ = cpu_seconds()
    idle = {core: round(after.get(core, 0.0) - before.get(core, 0.0), 2) for core in allowed}
    twins: dict[int, int] = {}
    first_of: dict[str, int] = {}
    for core in allowed:
        siblings = read_kernel_file(CPUS / f"cpu{core}/topology/thread_siblings_list") or str(core)
        twins[core] = int(first_of.setdefault(siblings, core) != core)
    order = sorted(allowed, key=lambda core: (-_capacity(core), idle[core] > TICK_S, twins[core], idle[core], -core))
    cores = tuple(sorted(order[:threads]))
    for task in (PROC / "self/task").iterdir() if PROC.exists() else ():
        with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(int(task.name), cores)
    return cores


def normal_priority() -> None:
    """Undo a lowered priority, where that is allowed: users of the file will not run it `nice`d."""
    with contextlib.suppress(PermissionError, OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    if hasattr(os, "SCHED_IDLE") and os.sched_getscheduler(0) in (os.SCHED_IDLE, os.SCHED_BATCH):
        with contextlib.suppress(PermissionError, OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def waited_s() -> float | None:
    """Seconds that threads of this process waited in the run queue."""
    total = 0
    try:
        for task in (PROC / "self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                total += int((task / "schedstat").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return total / 1e9


def _memory_stall_s() -> float | None:
    """Seconds of memory stall: `some` in the kernel's pressure stall information."""
    line, _, _ = (read_kernel_file(PROC / "pressure/memory") or "").partition("\n")
    return int(line.rpartition("total=")[2]) / 1e6 if "total=" in line else None


def _processes() -> dict[int, tuple[str, int, float]]:
    """pid -> name, last CPU and CPU seconds of every process but this one."""
    found = {}
    for entry in PROC.iterdir() if PROC.exists() else ():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            text = read_kernel_file(entry / "stat")
            if text is not None:
                # the name stands in brackets and may hold any character
                name, _, fields = text.partition("(")[2].rpartition(")")
                values = fields.split()
                found[int(entry.name)] = (name, int(values[36]), (int(values[11]) + int(values[12])) * TICK_S)
    return found


def _busiest(before: Counters, after: Counters, cores: Collection[int]) -> str:
    """The other process that used most CPU time, with those on `cores` first; empty if all were quiet."""
    seconds = after.at - before.at
    used: dict[int, float] = {}
    for pid, (_, _, total) in after.processes.items():
        # a process that is new since `before` has used all of its time since then
        share = (total - before.processes[pid][2] if pid in before.processes else total) / max(seconds, TICK_S)
        if share > OTHERS_LIMIT:
            used[pid] = share
    if not used:
        return ""
    pid = max(used, key=lambda pid: (after.processes[pid][1] in cores, used[pid]))
    name, cpu, _ = after.processes[pid]
    return f"{name} {pid} used {100 * used[pid]:.0f} % of a CPU, CPU {cpu} at last"


def _mhz(cores: Collection[int]) -> float | None:
    """Mean clock of some CPUs: the governor's figure, or the one in /proc/cpuinfo."""
    values = [read_kernel_file(CPUS / f"cpu{core}/cpufreq/scaling_cur_freq") for core in cores]
    mhz = [int(value) / 1000 for value in values if value]
    if not mhz:
        mhz = [float(value) for core, value in enumerate(read_cpuinfo("cpu MHz")) if core in cores]
    return sum(mhz) / len(mhz) if mhz else None


def _capacity(core: int) -> int:
    """Relative speed of a CPU, 0 if the kernel does not report it."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        if text := read_kernel_file(CPUS / f"cpu{core}/{name}"):
            return int(text)
    return 0


def _rate(before: float | None, after: float | None, seconds: float) -> float | None:
    return None if before is None or after is None else (after - before) / seconds
