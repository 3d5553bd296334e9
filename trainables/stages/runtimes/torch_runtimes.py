"""Open networks in PyTorch: eager, TorchScript, torch.compile and CUDA graphs, on the CPU and on CUDA."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.stages.models.build import build_model
from trainables.stages.models.inspection import Normalised
from trainables.stages.models.weights import load_weights
from trainables.stages.runtimes.base import (
    RUNTIMES,
    AbsentError,
    Artifact,
    Batch,
    Logits,
    Opened,
    Runner,
    random_images,
)

_jit: Any = torch.jit  # its functions are untyped


def open_network(name: str, artifact: Artifact, *, threads: int, batch: int) -> Opened:
    """Open a network in one of PyTorch's runtimes.

    Raises:
        AbsentError: if the artifact lacks the form that the runtime takes.
    """
    runtime = RUNTIMES[name]
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    dtype = torch.float16 if artifact.half else torch.float32
    model: Any
    if runtime.source == "torchscript":
        model = _load_torchscript(artifact, runtime.device)
    else:
        model = _load_network(artifact).to(runtime.device, dtype).eval()
    if name.startswith("torch_compile"):
        model = torch.compile(model)
    example = torch.from_numpy(random_images(batch, artifact.image_size)).to(runtime.device, dtype)
    if name == "cuda_graph":
        model = _Graph(model, example)
        call: Callable[[], object] = model.replay
    else:
        call = _make_call(model, example)

    def logits(images: Batch) -> Logits:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(images).to(runtime.device, dtype)).float().cpu())

    device = f"cpu:{threads}" if runtime.device == "cpu" else "cuda:0"
    return Opened(logits=logits, runner=Runner(run=call, provider=f"PyTorch {name}", device=device, batch=batch))


def _load_network(artifact: Artifact) -> nn.Module:
    """Build the network with its normalisation in front, as in the exported file, and load its weights."""
    if artifact.weights is None:
        raise AbsentError("the trained weights are no longer in the store; only the exported files are")
    size, classes = artifact.image_size, artifact.num_classes
    model = build_model(artifact.model_name, num_classes=classes, image_size=size)
    load_weights(model, artifact.weights)
    return Normalised(model, artifact.mean, artifact.std)


def _load_torchscript(artifact: Artifact, device: str) -> nn.Module:
    """Load the traced and frozen module; its weights are constants, which only loading can put on a device."""
    if artifact.torchscript is None:
        raise AbsentError("the network could not be traced, so that there is no TorchScript file")
    if artifact.half:
        raise AbsentError("the TorchScript file holds float32 constants; there is none in float16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, but many still ship it
        module: nn.Module = _jit.load(os.fspath(artifact.torchscript), map_location=device)
    return module


def _make_call(model: Any, example: Tensor) -> Callable[[], object]:
    """Return a call that ends when the logits are complete."""
    synchronize = torch.cuda.synchronize if example.is_cuda else (lambda: None)

    def run() -> None:
        with torch.inference_mode():
            model(example)
        synchronize()

    run()  # torch.compile compiles in the first call
    return run


class _Graph:
    """The captured kernels of one call, and the tensors that they read and write, which must not be freed."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self._images = example
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # it fills the example and the weights
        with torch.inference_mode():
            with torch.cuda.stream(stream):  # capture needs warm-up calls on a stream other than the default one
                for _ in range(3):
                    model(example)
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self._logits: Tensor = model(example)

    def replay(self) -> None:
        """Run one call without the cost of launching kernels."""
        self._graph.replay()
        torch.cuda.synchronize()

    def __call__(self, images: Tensor) -> Tensor:
        """Compute logits of as many images as the example has; the next call overwrites them."""
        self._images.copy_(images)
        self.replay()
        return self._logits
