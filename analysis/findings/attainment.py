"""The accuracy a search attains within each latency, and how much of it depends on single lucky trials."""

from collections.abc import Sequence

import moocore
import numpy as np
import pandas as pd

from analysis.findings.confidence import resampled
from analysis.findings.pareto import non_dominated

LEVELS = (5.0, 50.0, 95.0)
"""Percentages of the resampled sweeps that attain each surface."""
RESAMPLES = 100


def attainment(
    frame: pd.DataFrame, *, levels: Sequence[float] = LEVELS, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Attainment surfaces of resampled trials: columns `latency_p50_ms`, `val_accuracy` and `level`.

    The surface of level p is, for each latency, the best accuracy that p percent of the resampled sweeps reach within
    it (Grunert da Fonseca, Fonseca and Hall, EMO 2001), computed by moocore in O(m log m) for m points.

    Args:
        frame: finished candidates.
        levels: percent.
        resamples: how many samples are drawn from the candidates, with replacement.
        seed: of the resampling.
    """
    points = np.column_stack([frame["latency_p50_ms"], -frame["val_accuracy"]]).astype(np.float64)
    points = points[np.isfinite(points).all(axis=1)]
    sets, members = [], []
    # Only the front of a resample shapes its surface: handing moocore the rest as well would change nothing but time.
    for number, rows in enumerate(resampled(len(points), resamples, seed)):
        drawn = points[np.unique(rows)]
        front = drawn[non_dominated(drawn)]
        members.append(front)
        sets.append(np.full(len(front), number + 1))
    surface = moocore.eaf(np.vstack(members), np.concatenate(sets), percentiles=list(levels))
    return pd.DataFrame({"latency_p50_ms": surface[:, 0], "val_accuracy": -surface[:, 1], "level": surface[:, 2]})
