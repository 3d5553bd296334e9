"""Tables and pictures of an ablation: the mean and standard deviation of each cell over its seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from rich.table import Table

from analysis.pages.markdown import safe
from analysis.pages.markdown import table as markdown_table
from analysis.pages.terminal import open_table
from analysis.plots.front import DPI, GREY, INK, OKABE_ITO, head, save
from analysis.reading.doors import write_csv
from analysis.reading.facts import dataset_of, device_of, images_of
from analysis.reading.rows import finished_runs
from analysis.reading.runs import Runs
from analysis.reading.wording import MB, plain_number
from trainables.files import write_text

METRICS = ("test_accuracy", "val_accuracy", "latency_p50_ms", "size_bytes")
# Metric -> heading with its unit, factor to that unit, format.
SHOWN: Mapping[str, tuple[str, float, str]] = {
    "test_accuracy": ("test\n%", 100, ".2f"),
    "val_accuracy": ("val\n%", 100, ".2f"),
    "latency_p50_ms": ("p50\nms", 1, ".3f"),
    "size_bytes": ("size\nMB", 1 / MB, ".3f"),
}
CAPTION = "mean ± standard deviation over n seeds; ms: latency p50 of one image; MB: ONNX file"
# These three settings have a heat map of their own: down, across, one panel per value.
HEAT_MAP = ("temperature", "alpha", "pruning_ratio")


def cells(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One row per combination of `by`: `n` seeds, and `METRIC_mean` and `METRIC_sd` (n - 1 below) of each metric.

    Only finished candidates count, in order of their trials. A setting that is off is None; the deviation of a single
    seed is NaN.
    """
    done = finished_runs(frame)
    rows: list[dict[str, Any]] = []
    for key, group in done.groupby(list(by), dropna=False, sort=False):
        row: dict[str, Any] = {name: None if value != value else value for name, value in zip(by, key, strict=True)}
        row["n"] = len(group)
        for metric in METRICS:
            row[f"{metric}_mean"] = float(group[metric].mean())
            row[f"{metric}_sd"] = float(group[metric].std(ddof=1))
        rows.append(row)
    columns = [*by, "n", *(f"{metric}_{what}" for metric in METRICS for what in ("mean", "sd"))]
    table = pd.DataFrame(rows, columns=columns)
    # In a column of numbers pandas turns None into NaN.
    settings = {name: pd.Series([row[name] for row in rows], dtype=object) for name in by}
    return table.assign(**settings)


def cells_table(table: pd.DataFrame, by: Sequence[str]) -> Table:
    """The cells as a table for the terminal: mean ± standard deviation."""
    shown = open_table(caption=CAPTION)
    for name in by:
        shown.add_column(name.replace("_", "\n"), justify="right")
    shown.add_column("n", justify="right")
    for heading, _, _ in SHOWN.values():
        shown.add_column(heading, justify="right", no_wrap=True)
    for _, row in table.iterrows():
        numbers = [_spread(row, metric) for metric in METRICS]
        shown.add_row(*(_setting(row[name]) for name in by), str(row["n"]), *numbers)
    return shown


def write_ablation(runs: Runs, by: Sequence[str], folder: Path) -> list[Path]:
    """Write ablation.csv, .md and, if a trial has finished, .png and .svg; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    table = cells(runs.frame, by)
    paths = [folder / "ablation.csv", folder / "ablation.md"]
    write_csv(table, paths[0], index=False)
    write_text(paths[1], _markdown(table, by, runs))
    if table.empty:
        return paths
    done = runs.frame[runs.frame["stage"] == "candidate"]
    picture = folder / "ablation.png"
    if set(by) == set(HEAT_MAP):
        return paths + heat_map_png(table, picture, frame=done, sweep=runs.sweep)
    return paths + bars_png(table, by, picture, frame=done, sweep=runs.sweep)


def _markdown(table: pd.DataFrame, by: Sequence[str], runs: Runs) -> str:
    headings = [*by, "n", *(heading.replace("\n", " ") for heading, _, _ in SHOWN.values())]
    rows = [
        [*(safe(_setting(row[name])) for name in by), str(row["n"]), *(_spread(row, metric) for metric in METRICS)]
        for _, row in table.iterrows()
    ]
    return f"# {safe(runs.name)}\n\n{markdown_table(headings, rows)}\n\n{CAPTION}\n"


def heat_map_png(table: pd.DataFrame, path: Path, *, frame: pd.DataFrame, sweep: Mapping[str, Any]) -> list[Path]:
    """Draw test accuracy over temperature and alpha, a panel per pruning ratio, one colour scale, values in cells.

    Args:
        table: `cells` by `HEAT_MAP`.
        path: of the PNG; the SVG is written beside it.
        frame: the trials, whose rows tell data set and images.
        sweep: the `sweep.json`, for facts that the rows do not carry.
    """
    down, across, panel = (sorted(table[name].unique()) for name in HEAT_MAP)
    values = 100 * table["test_accuracy_mean"].astype(float)
    scale = Normalize(values.min(), max(values.max(), values.min() + 1e-6))  # equal values still need a scale
    width = 1.9 + (1.35 * len(across) + 0.5) * len(panel)
    figure = Figure(figsize=(width, 2.9 + 1.0 * len(down)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(panel), sharey=True, squeeze=False)[0]
    for axes, ratio in zip(panels, panel, strict=True):
        _heat(axes, table[table["pruning_ratio"] == ratio], down, across, scale)
        axes.set_title(f"pruning_ratio {ratio:g}", fontsize=17)
        axes.set_xlabel("alpha (weight of the teacher)", fontsize=15)
    panels[0].set_ylabel("temperature", fontsize=15)
    bar = figure.colorbar(ScalarMappable(scale, cmap="cividis"), ax=list(panels), pad=0.01, aspect=14)
    bar.set_label("test accuracy, %", fontsize=15)
    bar.ax.tick_params(labelsize=13)
    title = f"{_title('Accuracy', table, frame, sweep)}\n({images_of('test', frame, sweep)} images)"
    head(figure, title, size=17)
    return save(figure, path)


def bars_png(
    table: pd.DataFrame, by: Sequence[str], path: Path, *, frame: pd.DataFrame, sweep: Mapping[str, Any]
) -> list[Path]:
    """Draw a bar per cell for test accuracy, latency and size, with the standard deviation as its whisker."""
    figure = Figure(figsize=(15, 2.4 + 0.42 * (1 + len(by)) * len(table)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    titles = {
        "test_accuracy": f"accuracy, %\n({images_of('test', frame, sweep)} images)",
        "latency_p50_ms": f"latency p50, ms\n(one image, {device_of(frame, sweep)})",
        "size_bytes": "size of the ONNX file, MB\n(1 MB = 1,000,000 bytes)",
    }
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        _bars(axes, table, metric)
        axes.set_title(title, fontsize=17)
    labels = ["\n".join(f"{name} {_setting(row[name])}" for name in by) for _, row in table.iterrows()]
    panels[0].set_yticks(range(len(table)), labels, fontsize=16)
    panels[0].invert_yaxis()
    head(figure, _title(" x ".join(by), table, frame, sweep), size=17)
    return save(figure, path)


def _heat(axes: Axes, part: pd.DataFrame, down: list[float], across: list[float], scale: Normalize) -> None:
    grid = np.full((len(down), len(across)), np.nan)
    for _, row in part.iterrows():
        at = down.index(row["temperature"]), across.index(row["alpha"])
        grid[at] = 100 * row["test_accuracy_mean"]
        ink = "white" if scale(grid[at]) < 0.55 else INK  # cividis is dark below and light above
        text = _spread(row, "test_accuracy", digits=".1f").replace(" ± ", "\n± ")
        axes.text(at[1], at[0], text, ha="center", va="center", color=ink, fontsize=15)
    axes.imshow(grid, cmap="cividis", norm=scale, aspect="auto")
    axes.set_xticks(range(len(across)), [f"{value:g}" for value in across], fontsize=15)
    axes.set_yticks(range(len(down)), [f"{value:g}" for value in down], fontsize=15)
    axes.tick_params(length=0)


def _bars(axes: Axes, table: pd.DataFrame, metric: str) -> None:
    factor = SHOWN[metric][1]
    means = factor * table[f"{metric}_mean"].to_numpy(dtype=float)
    sds = factor * table[f"{metric}_sd"].to_numpy(dtype=float)
    several = np.flatnonzero(np.isfinite(sds))  # a single seed has no deviation
    sds = np.nan_to_num(sds)
    axes.barh(range(len(table)), means, color=OKABE_ITO[4], edgecolor=GREY, height=0.62)
    axes.errorbar(
        means[several], several, xerr=sds[several], fmt="none", ecolor=INK, elinewidth=2, capsize=6, capthick=2
    )
    axes.set_xlim(0, 1.55 * float((means + sds).max()))
    for at, (_, row) in enumerate(table.iterrows()):
        axes.text(means[at] + sds[at], at, "  " + _spread(row, metric), va="center", fontsize=15, color=INK)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1.05 * (means + sds).max()])
    axes.tick_params(axis="x", labelsize=13)
    axes.spines[["top", "right"]].set_visible(False)


def _title(what: str, table: pd.DataFrame, frame: pd.DataFrame, sweep: Mapping[str, Any]) -> str:
    counts = sorted(int(n) for n in table["n"])
    seeds = f"n = {counts[0]}" if counts[0] == counts[-1] else f"n = {counts[0]} to {counts[-1]}"
    dataset, many = dataset_of(frame, sweep), "s" * (counts[-1] > 1)
    spread = "mean ± standard deviation, " if counts[-1] > 1 else ""
    return f"{what} on {dataset}: {spread}{seeds} training seed{many}"


def _spread(row: "pd.Series[Any]", metric: str, *, digits: str | None = None) -> str:
    _, factor, usual = SHOWN[metric]
    mean, sd = factor * row[f"{metric}_mean"], factor * row[f"{metric}_sd"]
    return f"{mean:{digits or usual}}" + (f" ± {sd:{digits or usual}}" if np.isfinite(sd) else "")


def _setting(value: Any) -> str:
    return "off" if value is None or value != value else plain_number(value)
