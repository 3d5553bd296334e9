"""Pareto numerics: arrays in, arrays out. Points are rows, and every coordinate is to be minimised."""

import math
from collections.abc import Mapping, Sequence

import moocore
import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
SIGNS = {"minimize": 1.0, "maximize": -1.0}
"""Direction -> the factor that makes an objective one to be minimised."""
AXES = ("error_points", "log2_latency_vs_teacher", "log2_size_vs_teacher")
"""Columns of `normalised`: the axes of the hypervolume."""


def objectives(frame: pd.DataFrame, directions: Mapping[str, str]) -> pd.DataFrame:
    """The objectives of a frame, all to be minimised, in the order of `directions`.

    This is the only place where a direction becomes a sign. Units stay those of the columns. A row with a missing or
    non-finite objective is left out, never filled in.

    Args:
        frame: one row per candidate.
        directions: column -> `minimize` or `maximize`.

    Raises:
        ValueError: if a direction is unknown or its column is missing.

    Example:
        >>> frame = pd.DataFrame({"val_accuracy": [0.9, 0.8, np.nan], "latency_p50_ms": [2.0, 1.0, 1.0]})
        >>> objectives(frame, {"val_accuracy": "maximize", "latency_p50_ms": "minimize"}).to_numpy()
        array([[-0.9,  2. ],
               [-0.8,  1. ]])
    """
    for name, direction in directions.items():
        if direction not in SIGNS:
            raise ValueError(f"The direction of {name} must be minimize or maximize, but got {direction=}.")
        if name not in frame.columns:
            raise ValueError(f"The objective {name} is no column; the columns are: {', '.join(frame.columns)}.")
    signs = [SIGNS[direction] for direction in directions.values()]
    values = frame[list(directions)].to_numpy(dtype=np.float64) * signs
    kept = np.flatnonzero(np.isfinite(values).all(axis=1))
    return pd.DataFrame(values[kept], index=frame.index[kept], columns=list(directions))


def non_dominated(points: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """True for every point that no other point dominates; equal points stay together.

    `a` dominates `b` when no coordinate of `a` is larger and at least one is smaller. O(n log n) up to three
    objectives, by the dimension sweep of Kung, Luccio and Preparata (JACM 22(4), 1975), as in moocore.

    Args:
        points: shape (n, m), finite, to be minimised.

    Returns:
        Shape (n,).

    Raises:
        ValueError: if a coordinate is not finite.

    Example:
        >>> non_dominated([[0, 1], [1, 0], [1, 0], [1, 1]])
        array([ True,  True,  True, False])
    """
    array = _points(points)
    if len(array) == 0:
        return np.zeros(0, dtype=np.bool_)
    # keep_weakly: of equal points moocore would otherwise keep the first alone.
    return np.asarray(moocore.is_nondominated(array, keep_weakly=True), dtype=np.bool_)


def hypervolume(points: npt.ArrayLike, reference: Sequence[float]) -> float:
    """Volume of the space that the points dominate, up to the reference point.

    The unit is the product of the axes' units. Only points that are better than the reference on every axis add to it.
    Two hypervolumes compare only under the same reference, so a sweep states it beforehand and never derives it from
    its results (Zitzler and Thiele, PPSN 1998; Auger et al., TCS 425, 2012). O(n log n) up to three objectives (Beume
    et al., IEEE TEC 13(5), 2009), as in moocore.

    Args:
        points: shape (n, m), finite, to be minimised.
        reference: shape (m,), the worst corner.

    Raises:
        ValueError: if a coordinate is not finite, or the reference has another number of axes.

    Example:
        >>> hypervolume([[1, 2], [2, 1]], [3, 3])
        3.0
    """
    array = _points(points)
    corner = np.asarray(reference, dtype=np.float64)
    if len(array) == 0:
        return 0.0
    if corner.shape != array.shape[1:] or not np.isfinite(corner).all():
        raise ValueError(f"The reference needs {array.shape[1]} finite coordinates, but got {reference=}.")
    return float(moocore.hypervolume(array, corner))


def normalised(frame: pd.DataFrame, teacher: Mapping[str, float]) -> pd.DataFrame:
    """The objectives on scales that compare across sweeps, all to be minimised: columns `AXES`.

    error_points            = 100 * (1 - val_accuracy)                             percentage points
    log2_latency_vs_teacher = log2(latency_p50_ms / reference_latency_p50_ms)      doublings; -1 is twice as fast
    log2_size_vs_teacher    = log2(size_bytes / teacher size_bytes)                doublings; -1 is half the size

    `reference_latency_p50_ms` is the teacher's p50, the scale of the sweep's latencies; rows without it are divided by
    the `latency_p50_ms` of `teacher`. A missing value stays NaN.

    Example:
        >>> frame = pd.DataFrame({"val_accuracy": [0.75], "latency_p50_ms": [1.0], "size_bytes": [2e6]})
        >>> normalised(frame, {"latency_p50_ms": 4.0, "size_bytes": 16e6}).to_numpy()
        array([[25., -2., -3.]])
    """
    columns = {
        "error_points": 100 * (1 - frame["val_accuracy"]),
        "log2_latency_vs_teacher": _log2(latency_ratio(frame, teacher)),
        "log2_size_vs_teacher": _log2(frame["size_bytes"] / teacher["size_bytes"]),
    }
    return pd.DataFrame(columns, index=frame.index).astype("float64")


def latency_ratio(frame: pd.DataFrame, teacher: Mapping[str, float]) -> pd.Series:
    """p50 latency as a multiple of the teacher's: the one that the row names, else the one in `teacher`."""
    reference = pd.Series(float(teacher["latency_p50_ms"]), index=frame.index)
    if "reference_latency_p50_ms" in frame.columns:
        named = frame["reference_latency_p50_ms"]
        reference = named.where(named > 0, reference)
    return frame["latency_p50_ms"] / reference


def hypervolume_over_trials(points: npt.ArrayLike, reference: Sequence[float]) -> Floats:
    """The hypervolume after each trial; it never decreases.

    Args:
        points: shape (n, m) in the order of the trials. A row with NaN is a trial without a candidate: it counts as a
            trial but adds nothing.
        reference: shape (m,).

    Returns:
        Shape (n,). O(n f log f) for fronts of f points.

    Example:
        >>> hypervolume_over_trials([[2, 2], [np.nan, 1], [1, 2]], [3, 3])
        array([1., 1., 2.])
    """
    array = np.atleast_2d(np.asarray(points, dtype=np.float64))
    values = np.zeros(len(array))
    front = np.empty((0, array.shape[1]))
    volume = 0.0
    for trial, point in enumerate(array):
        # Most trials are dominated by an earlier one: only those that change the front cost a new hypervolume.
        if np.isfinite(point).all() and not (front <= point).all(axis=1).any():
            front = np.vstack([front[(front < point).any(axis=1)], point])
            volume = hypervolume(front, reference)
        values[trial] = volume
    return values


def knee(points: npt.ArrayLike) -> int:
    """Index of the balanced point: the nearest to the ideal point, each axis scaled to [0, 1] over the points given.

    This is the compromise solution of Zeleny (1973) with the Euclidean distance. It depends on the extremes of the
    front: leave out those that are useless to you. Ties go to the first.

    Args:
        points: shape (n, m), finite, to be minimised; usually a front.

    Raises:
        ValueError: if there is no point.

    Example:
        >>> knee([[0, 10], [1, 1], [10, 0]])
        1
    """
    array = _points(points)
    if len(array) == 0:
        raise ValueError("The knee needs at least one point, but got none.")
    span = np.ptp(array, axis=0)
    scaled = (array - array.min(axis=0)) / np.where(span > 0, span, 1.0)  # an axis without spread decides nothing
    return int(np.argmin(np.linalg.norm(scaled, axis=1)))


def epsilon_net(points: Floats, count: int) -> list[int]:
    """Indices of up to `count` points, farthest first: the first point, then always the farthest from those taken.

    Gonzalez (TCS 38, 1985): every prefix covers the set within twice the best possible distance. Axes are scaled to
    their span in the set, so that units do not matter. O(n * count).

    Args:
        points: shape (n, m), n > 0.
        count: of points wanted.

    Example:
        >>> epsilon_net(np.array([[0.0, 9.0], [1.0, 8.0], [9.0, 0.0], [5.0, 5.0]]), 3)
        [0, 2, 3]
    """
    span = np.ptp(points, axis=0)
    scaled = points / np.where(span > 0, span, 1.0)
    order = [0]
    distance = np.linalg.norm(scaled - scaled[0], axis=1)
    while len(order) < min(count, len(points)):
        distance[order] = -1.0  # below every real distance: no point is taken twice, even among equal ones
        order.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(scaled - scaled[order[-1]], axis=1))
    return order


def _log2(ratio: pd.Series) -> pd.Series:
    return ratio.where(ratio > 0).astype("float64").map(math.log2, na_action="ignore")


def _points(points: npt.ArrayLike) -> Floats:
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, array.shape[1] if array.ndim == 2 else 0)
    if array.ndim != 2:
        raise ValueError(f"Points must have shape (n, m), but got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"Points must be finite, but row {int(np.argmin(np.isfinite(array).all(axis=1)))} is not.")
    return array
