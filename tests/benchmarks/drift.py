"""How much of the reference's drift to take out of a latency: equal networks ought to come out equal.

    python tests/benchmarks/drift.py runs other/runs

Reads the finished trials of sweeps that were run before and trains nothing. Trials whose networks have the same
architecture, in one sweep, differ in their weights alone; the less their latencies spread after

    raw p50 * (reference's own p50 / reference's p50 beside it) ** power

the better the power. Zeroed networks count as dense ones.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
LIMITS = (float("inf"), 0.15, 0.1, 0.05)
FEWEST = 3
"""Trials of one architecture whose spread says anything."""

Group = list[tuple[float, float]]
"""(raw p50 in ms, drift of the reference) of trials of one architecture."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outs", nargs="+", type=Path, metavar="OUT", help="what --out was of those sweeps")
    groups = [group for group in architectures(parser.parse_args().outs).values() if len(group) >= FEWEST]
    print(f"{sum(map(len, groups))} measurements of {len(groups)} architectures\n")
    print(f"{'drift up to':<14}{'n':>5}" + "".join(f"{f'power {power:g}':>12}" for power in POWERS))
    for limit in LIMITS:
        near = [[pair for pair in group if abs(pair[1]) <= limit] for group in groups]
        near = [group for group in near if len(group) >= FEWEST]
        if near:
            spreads = "".join(f"{100 * spread(near, power):>10.1f} %" for power in POWERS)
            print(f"{'any' if limit == float('inf') else f'{100 * limit:.0f} %':<14}{sum(map(len, near)):>5}{spreads}")


def architectures(outs: Sequence[Path]) -> dict[tuple[Any, ...], Group]:
    """Finished trials that other processes did not disturb, by everything that decides the shape of their file."""
    found: dict[tuple[Any, ...], Group] = defaultdict(list)
    for path in (path for out in outs for path in sorted(out.glob("sweeps/*/trials/*/record.json"))):
        row = json.loads(path.read_text(encoding="utf-8"))
        params, metrics, verdict = row["params"], row["metrics"], row["tags"].get("latency_verdict", "")
        drifted = verdict == "clean" or verdict.startswith("contaminated: the reference took")
        if "reference_latency_raw_p50_ms" in metrics and drifted:
            shape = (params.get("student_model"), params.get("precision"), metrics["num_params"])
            drift = metrics["reference_latency_raw_p50_ms"] / metrics["reference_latency_p50_ms"] - 1
            found[(path.parents[2], *shape)].append((metrics["latency_raw_p50_ms"], drift))
    return found


def spread(groups: Sequence[Group], power: float) -> float:
    """Standard deviation relative to the mean, averaged over all measurements."""
    total = 0.0
    for group in groups:
        corrected = [raw * (1 + drift) ** -power for raw, drift in group]
        total += len(group) * statistics.pstdev(corrected) / statistics.mean(corrected)
    return total / sum(map(len, groups))


if __name__ == "__main__":
    main()
