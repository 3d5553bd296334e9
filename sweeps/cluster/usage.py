"""How busy this machine is: its cores and its GPUs, sampled beside a sweep."""

import threading

import psutil

from trainables.stages.models.devices.gpu import read_gpu_use
from trainables.stages.models.devices.processor import usable_cores

SAMPLE_S = 3.0


class Usage:
    """Sample every `SAMPLE_S` in a thread of its own, so that a slow GPU driver delays nothing else."""

    def __init__(self, *, gpus: bool) -> None:
        """Sample nothing yet; `gpus` says whether GPUs are used at all."""
        self._gpus = gpus
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.text = ""
        """The last sample, on one line."""

    def start(self) -> None:
        """Start the sampling thread."""
        self._thread = threading.Thread(target=self._sample, name="usage", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the sampling thread."""
        self._stop.set()

    def _sample(self) -> None:
        cpu_text()  # psutil counts from a thread's last call on, and its first has nothing to count from
        while not self._stop.wait(SAMPLE_S):
            self.text = "   ".join([cpu_text(), *([gpu_text()] if self._gpus else [])])


def cpu_text() -> str:
    """Use of the cores that this process may use since this thread's last call, and of the machine's memory."""
    cores = usable_cores()
    try:
        percent = psutil.cpu_percent(percpu=True)
        memory = psutil.virtual_memory()
    except (OSError, psutil.Error) as error:  # a container may hide the kernel's counts
        return f"CPU use unknown: {type(error).__name__}"
    busy = [percent[core] for core in cores if core < len(percent)]
    used = (memory.total - memory.available) / 1e9
    return (
        f"CPU {sum(busy) / max(len(busy), 1):.0f} % of {len(cores)} cores"
        f"   memory {used:.1f} of {memory.total / 1e9:.1f} GB"
    )


def gpu_text() -> str:
    """Use and memory of every GPU of this machine; says so if NVML does not answer."""
    gpus = read_gpu_use()
    if not gpus:
        return "GPU use unknown: NVML does not tell"
    return "GPU " + ", ".join(f"{100 * gpu.busy_share:.0f} % {gpu.used_bytes / 1e9:.0f} GB" for gpu in gpus)
