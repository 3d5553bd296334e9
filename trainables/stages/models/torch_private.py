"""All private parts of torch that stages use; they are the reason why pyproject.toml limits torch's version.

tests/contracts/test_private_parts.py fails when one of them moves.
"""

import sys

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
