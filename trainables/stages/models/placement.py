"""How a network runs on its device: memory layout, precision, determinism, memory. Said, not left to defaults."""

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from trainables.config.checks import MachineError
from trainables.config.training import TrainingConfig
from trainables.stages.models.inspection import evaluating
from trainables.stages.models.torch_private import compiler_in_use, has_cpp_compiler

CONTEXT_BYTES = 600 * 2**20
"""What a process takes of a GPU besides its tensors (context, kernels, cuBLAS and cuDNN): a guess, not measured yet."""
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def move(model: nn.Module, device: torch.device, *, image_size: int) -> None:
    """Put a network on a device, in channels_last where its convolutions take such images.

    Measured on a CPU (AVX-512, one thread, fp32): a training step takes 0.6 to 1.0 of its time in NCHW and an
    evaluation 0.6 to 0.95, for AlexNet, ResNet-18 and MobileNetV3-Small at 32 and at 224 pixels; MobileNet gains most.
    A network that calls `view` on a feature map cannot take such images and keeps NCHW. A rule, not a race: a layout
    that changed from run to run would change the last bits of the result.
    """
    model.to(device)
    if not any(isinstance(layer, nn.Conv2d) for layer in model.modules()):
        return
    model.to(memory_format=torch.channels_last)
    images = torch.zeros(2, 3, image_size, image_size, device=device).contiguous(memory_format=torch.channels_last)
    with evaluating(model), torch.no_grad():
        try:
            model(images)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            model.to(memory_format=torch.contiguous_format)


def layout(model: nn.Module) -> torch.memory_format:
    """The memory layout that the network's weights are in: what its images should come in."""
    strided = any(weight.ndim == 4 and not weight.is_contiguous() for weight in model.parameters())
    return torch.channels_last if strided else torch.contiguous_format


def autocast(device: torch.device, training: TrainingConfig) -> AbstractContextManager[object]:
    """Around every forward pass: bfloat16 where `train_precision` is amp, nothing otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training.train_precision == "amp")


def settle(device: torch.device, training: TrainingConfig) -> None:
    """Set what this process's kernels may do; at every epoch, because trials of other settings share the process.

    cuDNN races its algorithms at every new shape unless reruns must be equal bit for bit. `fp32` means fp32; TF32 is
    for what amp leaves in float32.

    Raises:
        MachineError: if the GPU has no bfloat16.
    """
    torch.use_deterministic_algorithms(training.deterministic)
    # nothing here reads what nobody wrote
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch's own types lack it
    if device.type != "cuda":
        return
    amp = training.train_precision == "amp"
    if amp and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise MachineError(f"train_precision=amp: {name} has no bfloat16; take fp32.")
    torch.backends.cudnn.deterministic = training.deterministic
    torch.backends.cudnn.benchmark = not training.deterministic
    allow_tf32(amp)


def allow_tf32(on: bool) -> None:
    """Whether CUDA's matrix products and convolutions of float32 may round to TF32.

    By torch's older switches: after its newer ones (`fp32_precision`) whoever reads the older, as torch.compile does,
    gets an exception.
    """
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def compiled(model: nn.Module, training: TrainingConfig) -> Callable[[Tensor], Tensor]:
    """The network for full batches of training; other shapes go through `model` itself, which has the same weights.

    On a GPU its forward and backward are CUDA graphs ("reduce-overhead"). What Inductor compiled stays in
    TORCHINDUCTOR_CACHE_DIR, which all processes of a user on a machine share.

    Raises:
        MachineError: if there is no C++ compiler, without which torch.compile fails in the first step.
    """
    if not training.compile:
        return model
    if not has_cpp_compiler():
        raise MachineError("compile=True: torch.compile needs a C++ compiler; install g++ or leave it out.")
    device = next(model.parameters()).device
    return torch.compile(model, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)


def refusal(error: RuntimeError) -> MachineError | None:
    """What to tell a user whose network has an operation without a deterministic form; None for any other error."""
    operation, _, rest = str(error).partition(" does not have a deterministic implementation")
    if not rest:
        return None
    return MachineError(
        f"deterministic=True: {operation} has no deterministic form; leave it out or take another model."
    )


def enter(device: str, *, threads: int, memory_share: float = 1.0) -> None:
    """Set this process up for computing.

    Denormals are flushed: pruned weights decay into them and run 10 times slower. Freed memory is kept: glibc would map
    and zero every large tensor anew, 5 to 33 % of a training step (ResNet-18 at 32 pixels, MobileNetV3-Small at 224).

    Args:
        device: `cpu` or `cuda`.
        threads: CPU threads.
        memory_share: of the GPU's memory, for this process in all, in (0, 1]; less than 1 leaves `CONTEXT_BYTES` of it
            to the CUDA context.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # that of NVML, which is asked for clocks and heat
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # 32 MB; deterministic runs need it before cuBLAS starts
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(tensor_share(memory_share, torch.cuda.mem_get_info()[1]))


def tensor_share(memory_share: float, device_bytes: int) -> float:
    """The share of a GPU's memory that PyTorch may allocate in a process that gets `memory_share` of it in all.

    PyTorch caps its tensors alone: k processes capped at 1/k would want k contexts more than there is. Half of a share
    is for tensors in any case.
    """
    if memory_share == 1:  # alone on the GPU: PyTorch itself finds out when it is full
        return 1.0
    return max(memory_share - CONTEXT_BYTES / device_bytes, memory_share / 2)


def give_back() -> None:
    """Return freed memory to the system and the GPU, and what torch.compile holds: between trials of one process."""
    if compiler_in_use():
        torch.compiler.reset()  # else the ninth width in a process is over its limit and runs uncompiled
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
