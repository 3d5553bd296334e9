"""Set how a network runs on its device: memory layout, precision, determinism, memory. No default is relied on."""

import ctypes
import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from trainables.config.checks import MachineError
from trainables.config.training import TrainingConfig
from trainables.stages.models.devices import accelerator
from trainables.stages.models.inspection import evaluating
from trainables.stages.models.torch_private import compiler_in_use, has_cpp_compiler

log = logging.getLogger(__name__)

# GPU memory of a process besides its tensors (context, kernels, cuBLAS and cuDNN): a guess, not measured yet.
CONTEXT_BYTES = 600 * 2**20
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def move(model: nn.Module, device: torch.device, *, image_size: int) -> None:
    """Move a network to a device, in channels_last if its forward pass supports that layout.

    Measured on a CPU (AVX-512, one thread, fp32): a training step takes 0.6 to 1.0 of its time in NCHW and an
    evaluation 0.6 to 0.95, for AlexNet, ResNet-18 and MobileNetV3-Small at 32 and at 224 pixels; MobileNet gains most.
    A network that calls `view` on a feature map does not support it and keeps NCHW. The layout follows this rule, not
    a timing: a layout that changed from run to run would change the last bits of the result.
    """
    model.to(device)
    if not any(isinstance(layer, nn.Conv2d) for layer in model.modules()):
        return
    model.to(memory_format=torch.channels_last)
    images = torch.zeros(2, 3, image_size, image_size, device=device).contiguous(memory_format=torch.channels_last)
    with evaluating(model), torch.no_grad(), accelerator.without_timing():
        try:
            model(images)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            model.to(memory_format=torch.contiguous_format)


def layout(model: nn.Module) -> torch.memory_format:
    """Return the memory layout of the network's weights, which its images should have too."""
    strided = any(weight.ndim == 4 and not weight.is_contiguous() for weight in model.parameters())
    return torch.channels_last if strided else torch.contiguous_format


def autocast(device: torch.device, training: TrainingConfig) -> AbstractContextManager[object]:
    """Return the context for every forward pass: bfloat16 if `train_precision` is amp, otherwise no change."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training.train_precision == "amp")


def set_up_kernels(device: torch.device, training: TrainingConfig) -> None:
    """Set determinism and precision of this process's kernels.

    Call it at every epoch, because trials with other settings share the process. cuDNN times its algorithms at every
    new shape, unless reruns must be equal bit for bit. `fp32` never uses TF32; amp uses it for what stays in float32.

    Raises:
        MachineError: if the GPU has no bfloat16.
    """
    torch.use_deterministic_algorithms(training.deterministic)
    # no code here reads uninitialised memory, so filling it would only cost time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch's own types lack it
    if not accelerator.is_gpu(device):
        return
    amp = training.train_precision == "amp"
    if amp and not accelerator.has_bfloat16(device):
        raise MachineError(f"train_precision=amp: {accelerator.device_name(device)} has no bfloat16; take fp32.")
    accelerator.choose_convolutions(timed=not training.deterministic, deterministic=training.deterministic)
    accelerator.allow_tf32(amp)


def compile_model(model: nn.Module, training: TrainingConfig) -> Callable[[Tensor], Tensor]:
    """Compile the network if `compile` is set, for full training batches.

    Batches of another shape go through `model` itself, which has the same weights.

    Where the device has graphs, forward and backward become such ("reduce-overhead"). Inductor keeps its code in
    TORCHINDUCTOR_CACHE_DIR, which all processes of a user on a machine share.

    Raises:
        MachineError: if there is no C++ compiler, without which torch.compile fails in the first step.
    """
    if not training.compile:
        return model
    if not has_cpp_compiler():
        raise MachineError("compile=True: torch.compile needs a C++ compiler; install g++ or leave it out.")
    device = next(model.parameters()).device
    return torch.compile(model, dynamic=False, mode="reduce-overhead" if accelerator.has_graphs(device) else None)


class _Whole(nn.Module):
    """A network whose forward pass may be replaced without replacing that of the network itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits_BC: Tensor = self.network(images)
        return logits_BC


def capture_model(model: nn.Module, training: TrainingConfig, *, image_size: int) -> Callable[[Tensor], Tensor]:
    """Capture the network's training pass over a full batch as graphs, which replay hundreds of kernels in two calls.

    The kernels are those of a plain step, and so are their results: PyTorch gives a replay the random numbers that a
    plain step would draw. A network that cannot be captured stays as it is, which the log says.
    """
    device = next(model.parameters()).device
    if not accelerator.has_graphs(device):
        return model
    shape = (training.batch_size, 3, image_size, image_size)
    images = torch.zeros(shape, device=device).contiguous(memory_format=layout(model))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    amp = training.train_precision == "amp"
    try:
        # the cache would keep copies of weights from before the capture
        with torch.autocast(device.type, torch.bfloat16, enabled=amp, cache_enabled=False):
            return accelerator.capture(_Whole(model), images)
    except RuntimeError as error:
        log.warning("graphs: %s cannot be captured (%s); it stays as it is", type(model).__name__, error)
        return model
    finally:
        for name, buffer in model.named_buffers():  # BatchNorm has seen what was captured
            buffer.copy_(before[name])


def to_machine_error(error: RuntimeError) -> MachineError | None:
    """Convert torch's error about a non-deterministic operation into one for the user; None for any other error."""
    operation, _, rest = str(error).partition(" does not have a deterministic implementation")
    if not rest:
        return None
    return MachineError(
        f"deterministic=True: {operation} has no deterministic form; leave it out or take another model."
    )


def set_up_process(device: str, *, threads: int, memory_share: float = 1.0) -> None:
    """Set up this process for computing: threads, denormals, allocation, share of the GPU's memory.

    Denormals are flushed: pruned weights decay into them, and they compute 10 times slower. Freed memory is kept:
    otherwise glibc maps and zeroes every large tensor anew, which takes 5 to 10 % of a training step of ResNet-18
    at 32 pixels and 33 % of one of MobileNetV3-Small at 224.

    Args:
        device: `cpu` or `gpu`.
        threads: CPU threads.
        memory_share: fraction of the GPU's memory that this process may use in all, in (0, 1]; below 1,
            `CONTEXT_BYTES` of it are left for the device's context.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # else the compiler starts a worker for each core of the machine, in every trial
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(threads)
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # 32 MB; deterministic runs need it before cuBLAS starts
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)
    there = accelerator.find_device(device)
    if accelerator.is_gpu(there):
        accelerator.limit_memory(there, tensor_share(memory_share, accelerator.memory_info(there)[1]))


def tensor_share(memory_share: float, device_bytes: int) -> float:
    """Return the share of a GPU's memory that PyTorch may allocate in a process that may use `memory_share` in all.

    PyTorch limits only its tensors, so k processes limited to 1/k would exceed the memory by k contexts. At least half
    of the share is left for tensors.
    """
    if memory_share == 1:  # alone on the GPU, where the device itself is the limit
        return 1.0
    return max(memory_share - CONTEXT_BYTES / device_bytes, memory_share / 2)


def release_memory() -> None:
    """Release freed memory to the system and the GPU, and torch.compile's caches; call it between trials."""
    if compiler_in_use():
        torch.compiler.reset()  # otherwise the ninth width in a process exceeds its limit and runs uncompiled
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    accelerator.empty_cache()
