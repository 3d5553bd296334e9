"""Still pictures of one aspect each: the spread of latencies, and the growth of the front."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.plots.axes import mark_log_axis, needs_log_axis
from analysis.plots.front import DPI, GREY, INK, OKABE_ITO, TEACHER, head, headline, layout, plain, save
from analysis.reading.facts import device_of
from analysis.reading.wording import trial_label

MOST_ROWS = 14  # front members in the picture of latencies; more would not be legible
PERCENTILES = {"latency_p50_ms": ("o", "p50"), "latency_p90_ms": ("D", "p90"), "latency_p99_ms": ("|", "p99")}


def latency_png(frame: pd.DataFrame, path: Path, *, sweep: Mapping[str, Any]) -> list[Path]:
    """Draw p50, p90 and p99 of the teacher and the front members, the fastest at the bottom.

    Args:
        frame: finished candidates and the teacher (`stage` = teacher), with the bool column `pareto`.
        path: of the PNG; the SVG is written beside it.
        sweep: the `sweep.json`, for facts that the rows do not carry.
    """
    rows = _rows_shown(frame)
    figure = Figure(figsize=(11, 2.6 + 0.5 * len(rows)), dpi=DPI, layout=layout())
    axes = figure.subplots()
    for at, (_, row) in enumerate(rows.iterrows()):
        colour = TEACHER if row["stage"] == "teacher" else OKABE_ITO[0]
        known = [float(row[name]) for name in PERCENTILES if pd.notna(row.get(name))]
        axes.plot([min(known), max(known)], [at, at], color=colour, linewidth=2, alpha=0.5, zorder=1)
        for name, (marker, _) in PERCENTILES.items():
            if pd.notna(row.get(name)):
                size = 190 if marker == "|" else 75
                axes.scatter(row[name], at, marker=marker, s=size, color=colour, linewidths=2.5, zorder=2)
    # Empty scatters make the legend's entries: the drawn ones have the colours of rows.
    for marker, label in PERCENTILES.values():
        axes.scatter([], [], marker=marker, s=190 if marker == "|" else 90, color=GREY, linewidths=2.5, label=label)
    axes.set_yticks(range(len(rows)), [plain(trial_label(row)) for _, row in rows.iterrows()], fontsize=15)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    values = rows[[name for name in PERCENTILES if name in rows.columns]].to_numpy(dtype=float)
    _latency_axis(axes, values[np.isfinite(values)])
    count = rows["latency_n"].median() if "latency_n" in rows.columns else np.nan
    runs = f", typically {count:,.0f} runs" if np.isfinite(count) else ""
    axes.set_xlabel(f"latency of one image, ms ({device_of(frame, sweep)}{runs})", fontsize=15)
    head(axes, f"Latency of the front\n{headline(frame, sweep)}", size=16)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=15)
    return save(figure, path)


def hypervolume_png(
    curve: Sequence[tuple[int, float]], path: Path, *, frame: pd.DataFrame, sweep: Mapping[str, Any]
) -> list[Path]:
    """Draw the hypervolume of all finished candidates up to each trial; where it is flat, more trials gain little.

    Args:
        curve: (trial number, hypervolume), as `analysis.findings.front.hypervolume_curve` returns it.
        path: of the PNG; the SVG is written beside it.
        frame: the trials, whose rows tell data set and models.
        sweep: the `sweep.json`, for the reference point and for facts that the rows do not carry.
    """
    figure = Figure(figsize=(10, 6), dpi=DPI, layout=layout())
    axes = figure.subplots()
    numbers, volumes = [number for number, _ in curve], [volume for _, volume in curve]
    axes.step(numbers, volumes, where="post", color=OKABE_ITO[0], linewidth=2.5)
    if len(numbers) <= 60:  # more points would hide the line
        axes.plot(numbers, volumes, linestyle="", marker="o", color=OKABE_ITO[0], markersize=7)
    axes.annotate(
        f"{volumes[-1]:.1f}",
        (numbers[-1], volumes[-1]),
        xytext=(0, 10),
        textcoords="offset points",
        ha="right",
        fontsize=16,
        fontweight="bold",
        color=INK,
    )
    axes.set_xlabel("trial", fontsize=15)
    axes.set_ylabel("hypervolume,\npoints x doublings x doublings", fontsize=15)
    head(axes, f"Hypervolume of the front\n{headline(frame, sweep)}", size=16)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.1 * max(volumes) or 1)  # all may be 0: nothing better than the reference point yet
    axes.tick_params(labelsize=14)
    axes.grid(color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)
    corner = sweep["reference_point"]
    latency, size = (2 ** corner[f"log2_{name}_vs_teacher"] for name in ("latency", "size"))
    words = f"from {corner['error_points']:g} % error, {latency:g} x the teacher's latency and {size:g} x its size"
    figure.supxlabel(words, fontsize=13, color="#555555")
    return save(figure, path)


def _rows_shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The front members, the fastest first and evenly thinned out to `MOST_ROWS`, then the teacher."""
    front = frame[(frame["stage"] != "teacher") & frame["pareto"]].sort_values("latency_p50_ms")
    if len(front) > MOST_ROWS:
        front = front.iloc[np.unique(np.linspace(0, len(front) - 1, MOST_ROWS).round().astype(int))]
    return pd.concat([front, frame[frame["stage"] == "teacher"].head(1)])


def _latency_axis(axes: Axes, values: Any) -> None:
    axes.tick_params(axis="x", labelsize=14)
    axes.grid(axis="x", color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if needs_log_axis(values):
        axes.set_xscale("log")
        mark_log_axis(axes.xaxis, float(values.min()) / 1.2, 1.2 * float(values.max()))
    else:
        axes.set_xlim(left=0)
