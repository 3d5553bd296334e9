"""Fronts of several sweeps in one picture."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.findings.front import competing
from analysis.plots.front import DPI, OKABE_ITO, draw_attainment, label_front, layout, plain, save
from analysis.reading.runs import Runs


def attainment_png(first: Runs, second: Runs, path: Path) -> list[Path]:
    """Draw what each sweep attains: its median surface, and the band of 5 % to 95 % of its resamples.

    Args:
        first: drawn with a solid line and dots.
        second: drawn with a dashed line and diamonds.
        path: of the PNG; the SVG is written beside it.
    """
    figure = Figure(figsize=(10, 7), dpi=DPI, layout=layout())
    axes = figure.subplots()
    frames = [competing(first), competing(second)]
    # Both surfaces run to the slowest candidate of either, so that they compare over the whole axis.
    end = max(float(frame["latency_p50_ms"].max()) for frame in frames)
    for runs, frame, colour, line in zip((first, second), frames, OKABE_ITO, ("-", "--"), strict=False):
        draw_attainment(axes, frame, end, colour=colour, line=line, label=plain(runs.name))
        marker = "o" if line == "-" else "D"
        axes.scatter(frame["latency_p50_ms"], 100 * frame["val_accuracy"], s=18, color=colour, marker=marker, alpha=0.5)
    label_front(axes, pd.concat(frames), first.sweep)
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=14)
    return save(figure, path)
