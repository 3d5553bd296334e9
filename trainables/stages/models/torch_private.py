"""All private parts of torch that stages use; they are the reason why pyproject.toml limits torch's version.

tests/contracts/test_private_parts.py fails when one of them moves.
"""

import sys

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm

BatchNorm = batchnorm._BatchNorm
"""BatchNorm of any dimension, synchronised or not: torch has no public name for their base class."""


def has_cpp_compiler() -> bool:
    """Check whether torch.compile finds a C++ compiler; without one it fails in the first step."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # only here: the import takes seconds
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError, OSError):
        return False
    return True


def compiler_in_use() -> bool:
    """Check whether this process has imported torch's compiler."""
    # `torch.compiler.reset` would import it, which takes seconds
    return "torch._dynamo" in sys.modules


def untraceable_line(model: nn.Module, images: Tensor) -> str | None:
    """Find the line of a network's code that torch.export cannot follow for any number of images; None if none."""
    # this report knows the line also where the exporter only says that a dimension became constant
    try:
        program = torch.export.draft_export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        frame = program._report.failures[0].data["user_stack"][-1]  # type: ignore[attr-defined]  # torch's own types lack it
        return f"line {frame['line']}: {frame['loc']}"  # a process's second report leaves out names of files
    except Exception:  # it raises anything on code that it cannot follow either, and a report may be empty
        return None
