"""Still pictures of the front, and of the chosen variants beside the teacher."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from analysis.findings.attainment import LEVELS, RESAMPLES, attainment
from analysis.findings.confidence import half_width_95
from analysis.plots.axes import mark_log_axis, needs_log_axis, staircase
from analysis.reading.facts import dataset_of, device_of, images_of, models_of
from analysis.reading.wording import MB, kinds_of, merged_names, pruning_of, trial_label
from trainables.files import replacing

INK = "#1a1a1a"
GREY = "#8c8c8c"
# Not a colour of the size scale, which the teacher's size would stretch until all candidates look alike.
TEACHER = "#D55E00"
# Colours that colour-blind readers can tell apart (Okabe and Ito, 2008).
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
MARKERS = ("o", "D", "s", "^", "P", "X")
DPI = 150
BOLD_WIDTH = 0.7  # of a bold letter, as a share of the font size
MANY = 500  # more points become a bitmap inside the SVG, which would grow by a kilobyte per point


def pareto_png(frame: pd.DataFrame, path: Path, *, sweep: Mapping[str, Any], variants: Mapping[str, str]) -> list[Path]:
    """Draw accuracy against latency: colour shows size, the symbol the pruning method, letters the named variants.

    The grey band shows what resampled trials attain (`analysis.findings.attainment`): it is wide where a single lucky
    trial carries the front.

    Args:
        frame: finished candidates and the teacher (`stage` = teacher), with the bool column `pareto`.
        path: of the PNG; the SVG is written beside it.
        sweep: the `sweep.json`, for facts that the rows do not carry.
        variants: name -> run id, as `analysis.findings.front.choose` returns them.
    """
    figure = Figure(figsize=(11, 7.4), dpi=DPI, layout=layout())
    axes = figure.subplots()
    candidates = frame[frame["stage"] != "teacher"]
    front = candidates[candidates["pareto"]]
    sizes = candidates["size_bytes"].dropna() / MB
    smallest, largest = float(sizes.min()), max(float(sizes.max()), 1.1 * float(sizes.min()))
    scale = LogNorm(smallest, largest)
    xs, ys = staircase(front["latency_p50_ms"], 100 * front["val_accuracy"], float(frame["latency_p50_ms"].max()))
    axes.plot(xs, ys, color=INK, linewidth=1.3, linestyle=":", zorder=1)
    handles: list[Any] = [
        Line2D([], [], color=INK, linewidth=1.3, linestyle=":", label="best accuracy within a latency")
    ]
    handles += _band(axes, candidates, float(frame["latency_p50_ms"].max()))
    handles += _scatter(axes, candidates, scale)
    handles += _teacher_star(axes, frame[frame["stage"] == "teacher"])
    bar = figure.colorbar(ScalarMappable(scale, cmap="viridis"), ax=axes, pad=0.02)
    mark_log_axis(bar.ax.yaxis, smallest, largest)
    bar.set_label("size, MB", fontsize=13)
    handles += _letters(axes, front, merged_names(variants))
    label_front(axes, frame, sweep)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=12)
    return save(figure, path)


def metrics_grid_png(
    frame: pd.DataFrame, path: Path, *, sweep: Mapping[str, Any], variants: Mapping[str, str]
) -> list[Path]:
    """Draw accuracy, latency and size of the teacher and the chosen variants, side by side.

    Accuracy is that on the test split, or on validation where test was not read, with Wilson's 95 % interval over its
    images; latency is p50 with a whisker to p90.

    Args:
        frame: finished candidates and the teacher, with the bool column `pareto`.
        path: of the PNG; the SVG is written beside it.
        sweep: the `sweep.json`, for facts that the rows do not carry.
        variants: name -> run id, as `analysis.findings.front.choose` returns them.
    """
    merged = merged_names(variants)
    teacher = frame[frame["stage"] == "teacher"].head(1)
    rows = pd.concat([teacher, frame.loc[list(merged)]])
    names = ["teacher"] * len(teacher) + [merged[run_id].replace(", ", "\n") for run_id in merged]
    kinds = kinds_of(frame[frame["stage"] != "teacher"].drop(columns="pruning_method", errors="ignore"))
    told = kinds if kinds.nunique() > 1 else kinds.iloc[:0]
    labels = [
        _variant_label(name, row, told.get(run_id, ""))
        for name, (run_id, row) in zip(names, rows.iterrows(), strict=True)
    ]
    colours = [GREY] * len(teacher) + list(OKABE_ITO[: len(merged)])
    figure = Figure(figsize=(14, 2.2 + 1.05 * len(rows)), dpi=DPI, layout=layout())
    panels = figure.subplots(1, 3, sharey=True)
    split = "test" if rows.get("test_accuracy", pd.Series(dtype=float)).notna().all() else "val"
    accuracy = rows[f"{split}_accuracy"].to_numpy(dtype=float)
    counts = rows.get(f"num_{split}", pd.Series(np.nan, index=rows.index)).to_numpy(dtype=float)
    margin = [100 * half_width_95(a, n) for a, n in zip(accuracy, counts, strict=True)]
    p50 = rows["latency_p50_ms"].to_numpy(dtype=float)
    p90 = rows.get("latency_p90_ms", rows["latency_p50_ms"]).to_numpy(dtype=float)
    size = rows["size_bytes"].to_numpy(dtype=float) / MB
    _bars(panels[0], 100 * accuracy, colours, ".1f", "%", (margin, margin))
    _bars(panels[1], p50, colours, "", "ms", (np.zeros(len(rows)), np.maximum(p90 - p50, 0)))
    _bars(panels[2], size, colours, "", "MB", None)
    panels[0].set_title(f"accuracy, %\n({images_of(split, frame, sweep)}; 95 % interval)", fontsize=15)
    panels[1].set_title(f"latency p50, ms, whisker to p90\n(one image, {device_of(frame, sweep)})", fontsize=15)
    panels[2].set_title("size of the ONNX file, MB\n(1 MB = 1,000,000 bytes)", fontsize=15)
    panels[0].set_yticks(range(len(rows)), [plain(label) for label in labels], fontsize=15)
    panels[0].invert_yaxis()
    head(figure, headline(frame, sweep), size=18)
    return save(figure, path)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and, beside it, as SVG; returns both files."""
    paths = [path, path.with_suffix(".svg")]
    for target in paths:
        with replacing(target) as file:
            figure.savefig(file, format=target.suffix[1:])
    return paths


def draw_attainment(axes: Axes, frame: pd.DataFrame, end: float, *, colour: str, line: str, label: str) -> None:
    """Draw the median attainment surface as a step line, and 5 % to 95 % as a band, up to the latency `end`.

    Args:
        axes: to draw on.
        frame: finished candidates.
        end: ms.
        colour: of line and band.
        line: matplotlib's style of the median; empty for the band alone.
        label: of the sweep in the legend.
    """
    if len(frame) == 0:
        return
    surfaces = attainment(frame)
    grid = np.unique(np.append(surfaces["latency_p50_ms"], end))
    rare, median, usual = (_attained(surfaces[surfaces["level"] == level], grid) for level in LEVELS)
    # Left of the first point of the usual surface, the band reaches down to the worst candidate.
    floor = np.where(np.isnan(usual), 100 * float(frame["val_accuracy"].min()), usual)
    axes.fill_between(
        grid, floor, rare, step="post", color=colour, alpha=0.22, linewidth=0, label=_about_band(label), zorder=0
    )
    if line:
        axes.step(grid, median, where="post", color=colour, linestyle=line, linewidth=2.2, label=f"{label}: median")


def _about_band(label: str) -> str:
    words = f"{LEVELS[0]:g} to {LEVELS[-1]:g} % of {RESAMPLES} resampled sweeps reach it"
    return f"{label}: {words}" if label else words


def _band(axes: Axes, candidates: pd.DataFrame, end: float) -> list[Any]:
    if len(candidates) < 10:
        return []  # resamples of so few say little, and the band would hide them
    draw_attainment(axes, candidates, end, colour=GREY, line="", label="")
    return [axes.collections[-1]]


def _attained(surface: pd.DataFrame, grid: Any) -> Any:
    """The best accuracy, in %, of a surface within each latency of the grid; NaN left of its first point."""
    ordered = surface.sort_values("latency_p50_ms")
    best = np.concatenate([[np.nan], np.maximum.accumulate(100 * ordered["val_accuracy"].to_numpy())])
    return best[np.searchsorted(ordered["latency_p50_ms"].to_numpy(), grid, side="right")]


def _scatter(axes: Axes, candidates: pd.DataFrame, scale: Normalize) -> list[Line2D]:
    handles = []
    for number, (kind, rows) in enumerate(candidates.groupby(kinds_of(candidates))):
        marker = MARKERS[number % len(MARKERS)]
        for on_front, part in rows.groupby("pareto"):
            axes.scatter(
                part["latency_p50_ms"],
                100 * part["val_accuracy"],
                c=part["size_bytes"] / MB,
                cmap="viridis",
                norm=scale,
                marker=marker,
                s=150 if on_front else 45,
                alpha=1.0 if on_front else 0.6,
                edgecolors=INK,
                linewidths=1.8 if on_front else 0.3,
                zorder=3 if on_front else 2,
                rasterized=len(part) > MANY,
            )
        handle = Line2D([], [], linestyle="", marker=marker, color=GREY, markersize=8, label=plain(str(kind)))
        handles.append(handle)
    handles.append(
        Line2D([], [], linestyle="", marker="o", markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.8)
    )
    handles[-1].set(markersize=10, label="on the front (accuracy, latency, size)")
    return handles


def _teacher_star(axes: Axes, teacher: pd.DataFrame) -> list[Line2D]:
    if teacher.empty:
        return []
    axes.scatter(
        teacher["latency_p50_ms"],
        100 * teacher["val_accuracy"],
        color=TEACHER,
        marker="*",
        s=420,
        edgecolors=INK,
        linewidths=1.2,
        zorder=3,
    )
    label = f"teacher ({100 * teacher['val_accuracy'].iloc[0]:.2f} %, {teacher['latency_p50_ms'].iloc[0]:.3g} ms)"
    return [Line2D([], [], linestyle="", marker="*", color=TEACHER, markersize=14, label=label)]


def _letters(axes: Axes, front: pd.DataFrame, merged: Mapping[str, str]) -> list[Line2D]:
    """Letters in the points and words in the legend: labels beside the points would overlap."""
    handles = []
    for letter, (run_id, name) in zip("ABCD", merged.items(), strict=False):
        row = front.loc[[run_id]].iloc[0]
        x, y = row["latency_p50_ms"], 100 * row["val_accuracy"]
        text = axes.annotate(
            letter, (x, y), ha="center", va="center", fontsize=10, fontweight="bold", color="white", zorder=5
        )
        text.set_path_effects([withStroke(linewidth=2, foreground=INK)])
        words = f"{name}: {trial_label(row)}, {y:.2f} %, {x:#.3g} ms, {row['size_bytes'] / MB:#.3g} MB"
        handles.append(Line2D([], [], linestyle="", marker=f"${letter}$", color=INK, markersize=10, label=words))
        handles[-1].set_markeredgewidth(0)
    return handles


def label_front(axes: Axes, frame: pd.DataFrame, sweep: Mapping[str, Any]) -> None:
    """Set title and axis labels with units, and a log axis where latencies differ much."""
    head(axes, headline(frame, sweep), size=15)
    axes.set_xlabel(f"latency p50, ms (one image through the ONNX file, {device_of(frame, sweep)})", fontsize=13)
    axes.set_ylabel(f"accuracy, % ({images_of('val', frame, sweep)})", fontsize=13)
    axes.tick_params(labelsize=12)
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.06)
    if needs_log_axis(frame["latency_p50_ms"]):
        axes.set_xscale("log")
        mark_log_axis(axes.xaxis, *axes.get_xlim())


def _bars(axes: Axes, values: Any, colours: list[str], spec: str, unit: str, errors: Any) -> None:
    places = np.arange(len(values))
    axes.barh(places, values, color=colours, height=0.62)
    tops = np.asarray(values, dtype=float)
    if errors is not None:
        drawn = np.nan_to_num(np.asarray(errors, dtype=float))
        axes.errorbar(values, places, xerr=drawn, fmt="none", ecolor=INK, capsize=5, linewidth=1.5)
        tops = tops + drawn[1]
    for place, value, top in zip(places, values, tops, strict=True):
        text = f"{value:{spec}}" if spec else f"{value:#.3g}".rstrip(".")
        axes.annotate(
            f"{text} {unit}", (top, place), xytext=(8, 0), textcoords="offset points", va="center", fontsize=15
        )
    axes.set_xlim(0, np.nanmax(tops) * 1.42)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)


def _variant_label(name: str, row: pd.Series, kind: str) -> str:
    """`balanced`, below it `(trial 7, structured 0.3)`, and below that the kind, if there is more than one."""
    if row["stage"] == "teacher":
        return name
    recipe = f", {pruning_of(row)}" if isinstance(row.get("pruning_method"), str) else ""
    return "\n".join(filter(None, (name, f"({trial_label(row)}{recipe})", kind)))


def headline(frame: pd.DataFrame, sweep: Mapping[str, Any]) -> str:
    """Data set and models: `cifar10, resnet18 to mobilenet_v3_small`."""
    return ", ".join(filter(None, (dataset_of(frame, sweep), models_of(frame, sweep))))


def head(over: Figure | Axes, text: str, *, size: float) -> None:
    """Set a bold title over a figure, or over axes from their left edge, in a smaller font if `size` does not fit."""
    figure = over if isinstance(over, Figure) else over.get_figure(root=True)
    assert figure is not None
    taken = 0.4 if over is figure else 1.8  # inches: an axis with its labels
    room = 72 * (figure.get_figwidth() - taken)
    fitting = min(size, room / (BOLD_WIDTH * max(map(len, text.splitlines()))))
    if isinstance(over, Figure):
        over.suptitle(plain(text), fontsize=fitting, fontweight="bold")
    else:
        over.set_title(plain(text), fontsize=fitting, fontweight="bold", loc="left")


def layout() -> ConstrainedLayoutEngine:
    """A layout with room around everything, so that nothing is cut off."""
    return ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)


def plain(text: str) -> str:
    """A text with its dollar signs escaped."""
    return text.replace("$", r"\$")  # Matplotlib reads text between two of them as mathematics
