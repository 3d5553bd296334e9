"""The device to compute on, whatever its maker: which, its streams, precision and memory, and what CUDA alone has.

Everything else asks this module and names no kind of device: NVIDIA, ROCm (which PyTorch calls `cuda` too), XPU and MPS
differ here alone. Where something is missing on a kind of device, the answer is a plain one: no stream, no limit.
"""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainables.config.checks import MachineError

CPU, GPU = "cpu", "gpu"
"""Names of devices in settings and tasks: `gpu` is whatever accelerator PyTorch finds where the task runs."""
# NVML, which reports clocks and heat, numbers the devices in this order. CUDA reads the variable when it starts, which
# counting the devices makes it do.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
# Its memory is the host's, which needs no copies ahead and is limited by the system alone.
_SHARES_MEMORY = ("mps",)
_CUDA = "cuda"


def count_gpus() -> int:
    """Count the accelerators that this process may use; 0 where PyTorch finds none."""
    return torch.accelerator.device_count()


def find_device(name: str) -> torch.device:
    """Find the device that a setting names: `cpu`, `gpu`, or what PyTorch calls its accelerator, such as `cuda`.

    Raises:
        MachineError: if this machine does not have it.
    """
    if name == CPU:
        return torch.device(CPU)
    there = torch.accelerator.current_accelerator(check_available=True)
    if name not in (GPU, there and there.type):
        try:
            torch.device(name)
        except RuntimeError:
            raise MachineError(f"device={name}: PyTorch knows no such device; take cpu or gpu.") from None
        raise MachineError(f"device={name}: PyTorch finds {there.type if there else 'no GPU'} here; take cpu or gpu.")
    if there is None:
        raise MachineError(f"device={name}: PyTorch finds no GPU here; take cpu.")
    return torch.device(there.type, torch.accelerator.current_device_index())


def is_gpu(device: torch.device) -> bool:
    """Whether the device works beside the host, which then must wait for its results."""
    return device.type != CPU


def device_name(device: torch.device) -> str:
    """Return the device's product name, or its kind."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return device.type if name is None else str(name(device))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was asked."""
    if is_gpu(device):
        torch.accelerator.synchronize(device)


# ---- streams


def open_stream(device: torch.device) -> torch.Stream | None:
    """Open a stream beside the current one, for copies; None where a copy ahead would gain nothing."""
    return torch.Stream(device) if is_gpu(device) and device.type not in _SHARES_MEMORY else None


@contextmanager
def on_stream(stream: torch.Stream) -> Iterator[None]:
    """Make a stream this thread's current one within; unlike `with stream`, several threads may do so at once."""
    before = torch.accelerator.current_stream(stream.device)
    torch.accelerator.set_stream(stream)
    try:
        yield
    finally:
        torch.accelerator.set_stream(before)


def take_over(tensor: Tensor, ready: torch.Event) -> None:
    """Let the current stream use a tensor that another one makes, once that has reached `ready`."""
    current = torch.accelerator.current_stream(tensor.device)
    current.wait_event(ready)  # only for this tensor: waiting for the stream would include later ones
    tensor.record_stream(current)  # allocated on the other stream, so the allocator must know of this one


# ---- precision


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself."""
    check = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return check is None or bool(check(including_emulation=False))


def allow_tf32(on: bool) -> None:
    """Allow or forbid TF32, or what stands for it, in an accelerator's float32 matrix products and convolutions.

    This uses torch's older switches: once the newer ones (`fp32_precision`) are set, reading the older ones raises an
    exception, and torch.compile reads them.
    """
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def choose_convolutions(*, timed: bool, deterministic: bool) -> None:
    """Let cuDNN time its algorithms at every new shape, or take deterministic ones; others have no such choice."""
    torch.backends.cudnn.benchmark = timed
    torch.backends.cudnn.deterministic = deterministic


@contextmanager
def without_timing() -> Iterator[None]:
    """Let cuDNN take its first choice within: timing all of its algorithms pays only for shapes that repeat."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def has_graphs(device: torch.device) -> bool:
    """Whether kernels can be captured once and replayed in one call."""
    return device.type == _CUDA


def capture(module: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Capture a network's forward and backward pass on a batch; the callable replays them on batches of its shape.

    Raises:
        RuntimeError: if the network waits for the device in between, or does what else cannot be captured.
    """
    replay: Any = torch.cuda.make_graphed_callables(module, (images,), allow_unused_input=True)
    return replay  # type: ignore[no-any-return]  # torch leaves what it returns untyped


# ---- memory


def memory_info(device: torch.device) -> tuple[int, int]:
    """(free, total) bytes of the device; both are all of the host's where it shares them."""
    if is_gpu(device) and device.type not in _SHARES_MEMORY:
        free, total = torch.accelerator.get_memory_info(device)
        return free, total
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return whole, whole


def limit_memory(device: torch.device, share: float) -> None:
    """Limit this process's tensors to a share of the device's memory, where PyTorch can."""
    limit = getattr(torch.get_device_module(device), "set_per_process_memory_fraction", None)
    if limit is not None:
        limit(share)


def memory_limit(device: torch.device) -> float:
    """The share of the device's memory that this process's tensors may take."""
    limit = getattr(torch.get_device_module(device), "get_per_process_memory_fraction", None)
    return 1.0 if limit is None else float(limit())


def empty_cache() -> None:
    """Give memory that PyTorch keeps for later back to the accelerator; nothing where it has not been used."""
    if torch.accelerator.current_accelerator() is not None:
        torch.accelerator.empty_cache()


def forget_peak(device: torch.device) -> None:
    """Count peaks of memory anew from here, without what PyTorch keeps for later."""
    empty_cache()
    if is_gpu(device) and device.type not in _SHARES_MEMORY:
        torch.accelerator.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device, *, kept: bool) -> int:
    """Peak of this process's tensors on the device; where that is the host's, of its resident memory since its start.

    Args:
        kept: with what PyTorch kept for later at that moment.
    """
    if is_gpu(device) and device.type not in _SHARES_MEMORY:
        peak = torch.accelerator.max_memory_reserved if kept else torch.accelerator.max_memory_allocated
        return peak(device)
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss starts at the parent process's peak
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reserved_bytes(device: torch.device) -> int:
    """What PyTorch holds of the device's memory now."""
    return torch.accelerator.memory_reserved(device) if is_gpu(device) and device.type not in _SHARES_MEMORY else 0
