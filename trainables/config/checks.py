"""What the configurations share: checks of values, and defaults by name (standard library only)."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any


class MachineError(ValueError):
    """A setting that this machine cannot serve, and another one may: never remembered as a failure of the stage."""


def check_epochs(name: str, value: int) -> None:
    """Return if this many epochs can be trained.

    Raises:
        ValueError: if it is below 0.
    """
    if value < 0:
        raise ValueError(f"`{name} >= 0` must hold, but got {name}={value}.")


def check_positive(name: str, value: float) -> None:
    """Return if the value is finite and above 0.

    Raises:
        ValueError: if it is not.
    """
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"`{name} > 0` must hold, but got {name}={value}.")


def check_not_negative(name: str, value: float) -> None:
    """Return if the value is finite and 0 or more.

    Raises:
        ValueError: if it is not.
    """
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"`{name} >= 0` must hold, but got {name}={value}.")


def check_word(name: str, value: str, known: Sequence[str]) -> None:
    """Return if the word is one of those that are known.

    Raises:
        ValueError: listing them, if it is not.
    """
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}, but got {name}={value!r}.")


def at_default(config: type, names: Collection[str]) -> dict[str, Any]:
    """Name -> default of these fields of a dataclass."""
    assert dataclasses.is_dataclass(config)
    return {field.name: field.default for field in dataclasses.fields(config) if field.name in names}
