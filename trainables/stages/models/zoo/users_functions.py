"""Networks of the user's own: `package.module:function`, called with `num_classes`."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from trainables.files import sha256
from trainables.stages.models.inspection import OUT_OF_MEMORY, USERS_ERRORS, describe_error

OURS = ("analysis", "sweeps", "trainables")


def build_users_model(name: str, *, num_classes: int, pretrained: bool) -> nn.Module:
    """Build the network that a user's function returns.

    Raises:
        ValueError: if the function cannot be imported, raises, or returns something else.
    """
    if pretrained:
        raise ValueError(
            f"--pretrained is for torchvision and timm models; load weights inside the function of model {name!r}."
        )
    try:
        model = import_function(name)(num_classes=num_classes)
    except OUT_OF_MEMORY:
        raise
    except USERS_ERRORS as error:  # the user's function may raise anything
        raise ValueError(f"Model {name!r}: the function raised {describe_error(error)}.") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"Model {name!r} must return a torch.nn.Module, but got {type(model).__name__}.")
    return model


def import_function(name: str) -> Callable[..., Any]:
    """Import the user's function.

    Raises:
        ValueError: if the module cannot be imported, is one of ours, or has no such function.
    """
    module_name, _, attribute = name.partition(":")
    if module_name.partition(".")[0] in OURS:
        raise ValueError(f"Model {name!r}: {module_name!r} is a module of this tool; give yours another name.")
    try:
        module = importlib.import_module(module_name)
    except USERS_ERRORS as error:  # the user's module may raise anything while it is imported
        raise ValueError(
            f"Model {name!r}: cannot import {module_name!r} ({describe_error(error)}); is its folder on PYTHONPATH?"
        ) from error
    function: Any = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"Model {name!r}: {module_name!r} has no function {attribute!r}.")
    found: Callable[..., Any] = function
    return found


def digest_source(name: str) -> str:
    """Return a digest of the file that defines the function; files that this one imports are not included."""
    file = inspect.getsourcefile(importlib.import_module(name.partition(":")[0]))
    return sha256(Path(file))[:16] if file else ""
