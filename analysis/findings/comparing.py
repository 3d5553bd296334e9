"""Two sweeps side by side: hypervolume with an interval, and what each attains within a latency."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.findings.confidence import resampled
from analysis.findings.front import competing
from analysis.findings.pareto import AXES, Floats, hypervolume, non_dominated, normalised
from analysis.reading.facts import dataset_of, first_known
from analysis.reading.runs import Runs

RESAMPLES = 400


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two."""

    name: str
    candidates: int
    front: int
    hypervolume: float
    """Percentage points x doublings of latency x doublings of size, up to the common reference point."""
    low: float
    """Bounds of the 95 % bootstrap interval."""
    high: float
    resampled: Floats
    """Hypervolume of every resample, shape (RESAMPLES,)."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What can be said of two sweeps."""

    sides: tuple[Side, Side]
    a_leads: float
    """Share of pairs of resamples in which the first sweep has the larger hypervolume, 0 to 1; ties count half."""
    notes: tuple[str, ...]
    """What the reader must know to believe it."""


def compare(first: Runs, second: Runs, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Hypervolumes under one reference point, and how sure their order is.

    The interval is the percentile interval of a bootstrap over trials (Efron, Ann. Stat. 7(1), 1979): what another
    search over the same space, with as many trials, might have found. It leans to smaller values, since a resample can
    lose the best trial but never gain a better one, and does so for both sides alike.

    Raises:
        ValueError: if the sweeps stand on different data, directions or reference points, or one has no candidate.
    """
    _check(first, second)
    sides = tuple(_side(runs, resamples, seed + number) for number, runs in enumerate((first, second)))
    a, b = sides[0].resampled[:, None], sides[1].resampled[None, :]
    leads = float(np.mean((a > b) + 0.5 * (a == b)))
    return Comparison(sides=(sides[0], sides[1]), a_leads=leads, notes=_notes(first, second))


def verdict(comparison: Comparison) -> str:
    """The sentence for a person."""
    one, two = comparison.sides
    if one.hypervolume == two.hypervolume:
        return f"{one.name} and {two.name} have the same hypervolume, {one.hypervolume:.2f}."
    leader, other = (one, two) if one.hypervolume >= two.hypervolume else (two, one)
    share = comparison.a_leads if leader is one else 1 - comparison.a_leads
    sure = f"in {100 * share:.0f} % of the resamples"
    if share >= 0.975:
        return f"{leader.name} has the better front: {leader.hypervolume:.2f} against {other.hypervolume:.2f}, {sure}."
    return (
        f"{leader.name} leads with {leader.hypervolume:.2f} against {other.hypervolume:.2f}, but only {sure}:"
        " the trials cannot tell them apart."
    )


def _side(runs: Runs, resamples: int, seed: int) -> Side:
    frame = competing(runs)
    if frame.empty:
        raise ValueError(f"sweep={runs.name!r} has no finished candidate to compare.")
    corner = [runs.sweep["reference_point"][axis] for axis in AXES]
    points = normalised(frame, runs.sweep["teacher"]).dropna()[list(AXES)].to_numpy()
    # A resample's front is made of members of whole fronts; who is never on one needs no drawing, but keeps its place.
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
            f"{first.name} stands on {data[0]}, {second.name} on {data[1]}; compare sweeps on one data set."
        )


def _notes(first: Runs, second: Runs) -> tuple[str, ...]:
    notes = []
    facts: dict[str, str] = {
        "teacher_model": "their teachers differ, and latency and size are relative to each sweep's own",
        "latency_device": "their latencies were taken on different devices",
        "split_seed": "they cut validation images off train differently",
    }
    for name, text in facts.items():
        values: list[Any] = [first_known(name, runs.frame, runs.sweep) for runs in (first, second)]
        if values[0] != values[1]:
            notes.append(f"{text} ({name} {values[0]}, {values[1]})")
    return tuple(notes)
