"""Two sweeps compared: their hypervolumes with intervals, and how sure it is that one is ahead."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.findings.confidence import resampled
from analysis.findings.front import competing
from analysis.findings.pareto import AXES, Floats, hypervolume, non_dominated, normalised
from analysis.reading.facts import dataset_of, first_known
from analysis.reading.runs import Runs

RESAMPLES = 400
SURE = 0.975  # a lead in this share of the resamples is called one: the upper end of a 95 % interval


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of the comparison."""

    name: str
    candidates: int
    """How many competed for the front."""
    front: int
    """How many are on it."""
    hypervolume: float
    """Percentage points x doublings of latency x doublings of size, up to the common reference point."""
    low: float
    """Lower bound of the 95 % bootstrap interval."""
    high: float
    """Upper bound of the 95 % bootstrap interval."""
    resampled: Floats
    """Hypervolume of every resample, shape (RESAMPLES,)."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The two sides, and what can be said of their order."""

    sides: tuple[Side, Side]
    a_leads: float
    """Share of pairs of resamples in which the first sweep has the larger hypervolume, 0 to 1; ties count half."""
    notes: tuple[str, ...]
    """Differences between the sweeps that a reader must know to judge the order."""


def compare(first: Runs, second: Runs, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """The hypervolumes of two sweeps under one reference point, and how sure their order is.

    The interval is the percentile interval of a bootstrap over trials (Efron, Ann. Stat. 7(1), 1979): what another
    search over the same space, with as many trials, might have found. It is biased towards smaller values, since a
    resample can lose the best trial but never gain a better one, and equally so on both sides.

    Raises:
        ValueError: if the sweeps differ in data set, directions or reference point, or one has no candidate.
    """
    _check(first, second)
    sides = tuple(_side(runs, resamples, seed + number) for number, runs in enumerate((first, second)))
    a, b = sides[0].resampled[:, None], sides[1].resampled[None, :]
    leads = float(np.mean((a > b) + 0.5 * (a == b)))
    return Comparison(sides=(sides[0], sides[1]), a_leads=leads, notes=_notes(first, second))


def verdict(comparison: Comparison) -> str:
    """The comparison in one sentence."""
    one, two = comparison.sides
    if one.hypervolume == two.hypervolume:
        return f"{one.name} and {two.name} have the same hypervolume, {one.hypervolume:.2f}."
    leader, other = (one, two) if one.hypervolume >= two.hypervolume else (two, one)
    share = comparison.a_leads if leader is one else 1 - comparison.a_leads
    sure = f"in {100 * share:.0f} % of the resamples"
    if share >= SURE:
        return f"{leader.name} has the better front: {leader.hypervolume:.2f} against {other.hypervolume:.2f}, {sure}."
    return (
        f"{leader.name} leads with {leader.hypervolume:.2f} against {other.hypervolume:.2f}, but only {sure}:"
        " the trials cannot tell them apart."
    )


def _side(runs: Runs, resamples: int, seed: int) -> Side:
    frame = competing(runs)
    if frame.empty:
        raise ValueError(f"Sweep {runs.name} has no finished candidate to compare.")
    corner = [runs.sweep["reference_point"][axis] for axis in AXES]
    points = normalised(frame, runs.sweep["teacher"]).dropna()[list(AXES)].to_numpy()
    # A candidate drawn twice adds no volume: each is counted once.
    volumes = np.array(
        [hypervolume(points[np.unique(rows)], corner) for rows in resampled(len(points), resamples, seed)]
    )
    low, high = np.percentile(volumes, [2.5, 97.5])
    return Side(
        name=runs.name,
        candidates=len(points),
        front=int(non_dominated(points).sum()),
        hypervolume=hypervolume(points, corner),
        low=float(low),
        high=float(high),
        resampled=volumes,
    )


def _check(first: Runs, second: Runs) -> None:
    for key in ("directions", "reference_point"):
        if first.sweep[key] != second.sweep[key]:
            raise ValueError(f"{first.name} and {second.name} differ in {key}; hypervolumes compare under one only.")
    data = [dataset_of(runs.frame, runs.sweep) for runs in (first, second)]
    if data[0] != data[1]:
        raise ValueError(
            f"{first.name} was run on {data[0]}, {second.name} on {data[1]}; compare sweeps on one data set."
        )


def _notes(first: Runs, second: Runs) -> tuple[str, ...]:
    notes = []
    facts: dict[str, str] = {
        "teacher_model": "their teachers differ, and latency and size are relative to each sweep's own teacher",
        "latency_device": "their latencies were measured on different devices",
        "split_seed": "they split validation images from train differently",
    }
    for name, text in facts.items():
        values: list[Any] = [first_known(name, runs.frame, runs.sweep) for runs in (first, second)]
        if values[0] != values[1]:
            notes.append(f"{text} ({name} {values[0]}, {values[1]})")
    return tuple(notes)
