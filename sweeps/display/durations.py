"""Durations: parsed from a command line, in words, and as ranges (standard library only)."""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


@dataclass(frozen=True)
class Range:
    """An estimate in seconds with its uncertainty."""

    low: float
    expected: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Range":
        """The range of measured seconds: fastest, median and slowest."""
        return cls(min(seconds), median(seconds), max(seconds))

    def __add__(self, other: "Range | float") -> "Range":
        plus = other if isinstance(other, Range) else Range(other, other, other)
        return Range(self.low + plus.low, self.expected + plus.expected, self.high + plus.high)

    def __mul__(self, factor: float) -> "Range":
        return Range(self.low * factor, self.expected * factor, self.high * factor)

    def __str__(self) -> str:
        return f"{in_words(self.expected)} ({in_words(self.low)} to {in_words(self.high)})"


def duration(text: str) -> float:
    """Seconds of `6h`, `90m`, `1h30m` or `45s`.

    Raises:
        argparse.ArgumentTypeError: if the text is not a duration above 0.

    Example:
        >>> duration("1h30m")
        5400.0
    """
    match = DURATION.fullmatch(text)
    parts = match.groups() if match else ()
    seconds = sum(float(part or 0) * unit for part, unit in zip(parts, (3600.0, 60.0, 1.0), strict=False))
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; write it as 6h, 90m, 1h30m or 45s.")
    return seconds


def in_words(seconds: float) -> str:
    """A duration in words.

    Example:
        >>> in_words(42), in_words(100), in_words(600), in_words(5400)
        ('42 s', '100 s', '10 min', '1.5 h')
    """
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def clock(seconds: float) -> str:
    """A duration in the format of a clock.

    Example:
        >>> clock(42), clock(3700)
        ('0:42', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
