"""Helpers of all configurations: checks of values, and defaults by name (standard library only)."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any


class MachineError(ValueError):
    """This machine cannot provide a setting, but another one may, so the store never caches it as a failure."""


def check_epochs(name: str, value: int) -> None:
    """Check that a number of epochs is not negative.

    Raises:
        ValueError: if it is.
    """
    if value < 0:
        raise ValueError(f"`{name} >= 0` must hold, but got {name}={value}.")


def check_positive(name: str, value: float) -> None:
    """Check that a value is finite and above 0.

    Raises:
        ValueError: if it is not.
    """
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"`{name} > 0` must hold, but got {name}={value}.")


def check_not_negative(name: str, value: float) -> None:
    """Check that a value is finite and 0 or more.

    Raises:
        ValueError: if it is not.
    """
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"`{name} >= 0` must hold, but got {name}={value}.")


def check_word(name: str, value: str, known: Sequence[str]) -> None:
    """Check that a word is one of the known ones.

    Raises:
        ValueError: listing the known words, if it is not.
    """
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}, but got {name}={value!r}.")


def at_default(config: type, names: Collection[str]) -> dict[str, Any]:
    """The default of each named field of a dataclass, by name."""
    assert dataclasses.is_dataclass(config)
    return {field.name: field.default for field in dataclasses.fields(config) if field.name in names}


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8; names of other bytes, or in an ASCII locale, cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
