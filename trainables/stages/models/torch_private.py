"""The private parts of torch that a stage needs, all of them; pyproject.toml bounds torch's version because of them.

tests/contracts/test_private_parts.py fails when one of them moves.
"""

import sys

from torch.nn.modules import batchnorm

BatchNorm = batchnorm._BatchNorm
"""BatchNorm of any dimension, synchronised or not: torch has no public name for their base class."""


def has_cpp_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler; without one it fails in the first step."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # seconds of imports, for those who asked
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError, OSError):
        return False
    return True


def compiler_in_use() -> bool:
    """Whether this process has imported torch's compiler: `torch.compiler.reset` would do so, and take seconds."""
    return "torch._dynamo" in sys.modules
