"""The runtimes that a trained network can be run in (no torch, unless a runtime of PyTorch's is opened)."""

from trainables.stages.runtimes.absence import find_missing
from trainables.stages.runtimes.base import RUNTIMES, AbsentError, Artifact, Opened


def open_runtime(name: str, artifact: Artifact, *, threads: int, batch: int = 1) -> Opened:
    """The network in a runtime, ready for calls of `batch` images on an input of random pixels.

    Raises:
        AbsentError: if the machine, or the network, has not got what the runtime needs, or another provider would
            run it in its place.
    """
    if reason := find_missing(name):
        raise AbsentError(reason)
    if RUNTIMES[name].source == "onnx":
        from trainables.stages.runtimes import onnx_runtimes

        return onnx_runtimes.open_file(name, artifact.onnx, threads=threads, batch=batch)
    from trainables.stages.runtimes import torch_runtimes

    return torch_runtimes.open_network(name, artifact, threads=threads, batch=batch)
