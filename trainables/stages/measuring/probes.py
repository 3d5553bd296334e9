"""Watch the machine beside every timed block, and drop blocks that it disturbed (no torch).

A slow block alone proves nothing: dropping the slow ones would report too low a latency. A block is dropped if others
ran in its place, or if it was slow and a fixed probe, timed just before and after it, was slow as well.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainables.files import write_text
from trainables.stages.measuring.machine import WAITED_LIMIT, waited_s

# A block is slow if its median exceeds that of the file's fast blocks by this factor; steady files vary by 1 %.
SLOW = 1.05
# Likewise the multiplications in the L1 cache, whose time on a steady clock varies by 1 %.
SLOW_CLOCK = 1.05
# Copying memory varies by tens of percent on an idle machine that shares its memory with others.
SLOW_MEMORY = 1.5
# Slow spells: blocks this much slower than the fast ones, in over this share, are a second mode of the file.
SPELL, SPELL_SHARE = 1.1, 0.25
# The fast blocks, and the fast readings of a probe, begin at this percentile.
FAST = 25.0

# Three float32 matrices of this side are 19 kB, less than the smallest L1 data cache in use. Hashing 16 kB instead saw
# 1 of 20 spells in which a file took 1.2 to 1.7 times as long, these see 18 (LOG.md, 2026-11-30, "slow spells"): a hash
# waits for its own results, and hardly feels a neighbour on the other half of the core, who takes what files need.
_SIDE, _PRODUCTS = 40, 20
_PIECE_BYTES = 2 * 2**20
_MEMORY_BYTES = 32 * _PIECE_BYTES  # a piece comes round again after 62 MB: no longer in most caches


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the probes and the scheduler say at one moment."""

    clock_ms: float
    """Time of fixed multiplications in the L1 cache: grows when the clock falls, or others use the same core."""
    memory_ms: float
    """Time of copying 2 MB from memory: grows when others use the memory's bandwidth."""
    waited_s: float | None
    """Time since its start in which this process was runnable but not running."""


class Probes:
    """The two probes, in the process that measures."""

    def __init__(self) -> None:
        self._factor = np.full((_SIDE, _SIDE), 0.5, dtype=np.float32)
        self._other, self._product = self._factor.copy(), np.empty_like(self._factor)
        self._large = np.ones(_MEMORY_BYTES, dtype=np.uint8)
        self._target = np.ones(_PIECE_BYTES, dtype=np.uint8)
        self._at = 0

    def read(self) -> Reading:
        """Run both probes, which takes less than a millisecond."""
        clock = sorted(self._time_products() for _ in range(3))[1]  # an interrupt hits one of three
        self._at = (self._at + _PIECE_BYTES) % _MEMORY_BYTES
        start = time.perf_counter_ns()
        np.copyto(self._target, self._large[self._at : self._at + _PIECE_BYTES])
        memory = time.perf_counter_ns() - start
        return Reading(clock_ms=clock / 1e6, memory_ms=memory / 1e6, waited_s=waited_s())

    def _time_products(self) -> int:
        start = time.perf_counter_ns()
        for _ in range(_PRODUCTS):
            np.dot(self._factor, self._other, out=self._product)
        return time.perf_counter_ns() - start


class Clocks:
    """What `Reading.clock_ms` mostly was in the last measurements on a machine; a file keeps it.

    Two processes that add at the same time may lose one reading.
    """

    KEPT, FEWEST = 101, 3
    # Of the sorted readings, the usual one ends the first quarter: a slow spell that lasts does not soon become usual.
    USUAL = 25.0

    def __init__(self, path: Path, machine: str) -> None:
        """Read the file, of which only what this machine has left there counts."""
        self._path, self._machine = path, machine
        self.readings: list[float] = []
        with contextlib.suppress(OSError, ValueError, TypeError):
            row = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(row, dict) and row.get("machine") == machine:
                self.readings = [float(reading) for reading in row.get("clock_ms", ())]

    def usual_ms(self) -> float | None:
        """The usual reading; None while there are fewer than `FEWEST`."""
        return float(np.percentile(self.readings, self.USUAL)) if len(self.readings) >= self.FEWEST else None

    def add(self, clock_ms: float) -> None:
        """Keep a reading, if the file can be written."""
        self.readings = [*self.readings, clock_ms][-self.KEPT :]
        with contextlib.suppress(OSError):
            write_text(self._path, json.dumps({"machine": self._machine, "clock_ms": self.readings}))


@dataclass(frozen=True, kw_only=True)
class Block:
    """Successive runs of one file, and the readings on both sides of them; None if nobody watched."""

    times_ms: Sequence[float]
    before: Reading | None = None
    after: Reading | None = None
    joules: float | None = None
    """Energy of these runs and of the untimed one before them."""

    @property
    def p50_ms(self) -> float:
        """Median of its runs."""
        return float(np.median(self.times_ms))

    def waited_share(self, threads: int) -> float | None:
        """Share of its time in which the process waited for a CPU."""
        if self.before is None or self.after is None or self.before.waited_s is None or self.after.waited_s is None:
            return None
        # a thread that ends takes its counter with it
        return max(0.0, self.after.waited_s - self.before.waited_s) * 1e3 / (sum(self.times_ms) * threads)


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """The blocks of one file that count, and what became of the others."""

    kept: tuple[Block, ...]
    clock_share: float | None = None
    """Share of all blocks that were slow beside slow products; this and the next are None if nobody watched."""
    memory_share: float | None = None
    """Share of all blocks that were slow beside slow copying, but no slow products."""
    waited_blocks_share: float | None = None
    """Share of all blocks in which others ran in the process's place."""
    waited_share: float | None = None
    """Share of the kept blocks' time in which the process waited; None if the system does not count it."""
    clock_probe_ms: float | None = None
    memory_probe_ms: float | None = None

    def conditions(self) -> dict[str, float]:
        """What is known, by its name in `ConditionsRecord`."""
        names = ("clock_share", "memory_share", "waited_blocks_share", "waited_share")
        found = {name: getattr(self, name) for name in (*names, "clock_probe_ms", "memory_probe_ms")}
        return {name: value for name, value in found.items() if value is not None}


def sort_blocks(blocks: Sequence[Block], *, threads: int = 1) -> Sorted:
    """Drop the disturbed blocks; if fewer than half would be left, keep all, because then nobody knows the true ones.

    Args:
        threads: of the process that may run at once; each of them can wait.
    """
    clock = _probe(blocks, "clock_ms")
    memory = _probe(blocks, "memory_ms")
    if clock is None or memory is None:
        return Sorted(kept=tuple(blocks))
    slow = _slow(np.array([block.p50_ms for block in blocks]), SLOW)
    waited = [block.waited_share(threads) for block in blocks]
    replaced = np.array([share is not None and share > WAITED_LIMIT for share in waited])
    by_clock = slow & _slow(clock, SLOW_CLOCK) & ~replaced
    by_memory = slow & _slow(memory, SLOW_MEMORY) & ~replaced & ~by_clock
    good = ~(replaced | by_clock | by_memory)
    if good.mean() < 0.5:
        good[:] = True
    known = [share for share, keep in zip(waited, good, strict=True) if keep and share is not None]
    return Sorted(
        kept=tuple(block for block, keep in zip(blocks, good, strict=True) if keep),
        clock_share=float(by_clock.mean()),
        memory_share=float(by_memory.mean()),
        waited_blocks_share=float(replaced.mean()),
        waited_share=float(np.mean(known)) if known else None,
        clock_probe_ms=float(np.percentile(clock, FAST)),
        memory_probe_ms=float(np.percentile(memory, FAST)),
    )


def slow_spells(blocks: Sequence[Block]) -> tuple[float, float]:
    """The share of blocks that are `SPELL` times as slow as the fast ones, and how many times as long they took.

    Example:
        >>> fast, slow = Block(times_ms=[1.0]), Block(times_ms=[1.5])
        >>> slow_spells([fast, slow, fast, fast])
        (0.25, 1.5)
    """
    medians = np.array([block.p50_ms for block in blocks])
    slow = _slow(medians, SPELL)
    if not slow.any():
        return 0.0, 1.0
    return float(slow.mean()), float(np.median(medians[slow]) / np.percentile(medians, FAST))


def _probe(blocks: Sequence[Block], name: str) -> npt.NDArray[np.float64] | None:
    """The mean of the readings before and after each block; None if one was not watched."""
    means = []
    for block in blocks:
        if block.before is None or block.after is None:
            return None
        means.append((getattr(block.before, name) + getattr(block.after, name)) / 2)
    return np.array(means) if means else None


def _slow(values: npt.NDArray[np.float64], factor: float) -> npt.NDArray[np.bool_]:
    return np.asarray(values > factor * np.percentile(values, FAST))
