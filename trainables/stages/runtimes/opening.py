"""Open a trained network in any runtime (no torch, unless a runtime of PyTorch's is opened)."""

from trainables.stages.runtimes.absence import find_missing
from trainables.stages.runtimes.base import RUNTIMES, AbsentError, Artifact, Opened


def open_runtime(name: str, artifact: Artifact, *, threads: int, batch: int = 1) -> Opened:
    """Open the network in a runtime, for calls of `batch` images; the input to time is random pixels.

    Raises:
        AbsentError: if the machine or the network lacks what the runtime needs, or another provider would run the
            network instead.
    """
    if reason := find_missing(name):
        raise AbsentError(reason)
    if RUNTIMES[name].source == "onnx":
        from trainables.stages.runtimes import onnx_runtimes

        return onnx_runtimes.open_file(name, artifact.onnx, threads=threads, batch=batch)
    from trainables.stages.runtimes import torch_runtimes

    return torch_runtimes.open_network(name, artifact, threads=threads, batch=batch)
