"""The front as a figure, a plain dictionary for plotly.js; texts are escaped, since plotly reads HTML in them."""

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from analysis.findings.selecting import Goal
from analysis.plots.axes import log_ticks, needs_log_axis, staircase
from analysis.reading.facts import device_of, images_of
from analysis.reading.wording import MB
from analysis.serving.watching import Standing
from trainables.config.escaping import plain

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "pentagon")
HOVER = "%{text}<br>%{x:.3g} ms<br>%{y:.2f} %<extra></extra>"
MANY = 2000  # more points than this are drawn by the graphics card; where there is none, an even part of them

Figure = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Palette:
    """The colours of a page."""

    ink: str
    """Of text and outlines."""
    grey: str
    """Of what is beside the point."""
    grid: str
    blue: str
    """Of lines about a candidate."""
    orange: str
    """Of the teacher."""
    paper: str
    """Of what lies over the page."""
    sizes: tuple[str, ...]
    """Of sizes, the smallest first: viridis, without the end that is hard to see on this page."""


LIGHT = Palette(
    ink="#1a1a1a",
    grey="#757575",
    grid="#e6e6e6",
    blue="#0072b2",
    orange="#d55e00",
    paper="#ffffff",
    sizes=("#440154", "#3b528b", "#21918c", "#5ec962", "#c8dc2c"),
)
DARK = Palette(
    ink="#e8e8e8",
    grey="#a0a0a0",
    grid="#3a3f45",
    blue="#6cb6ee",
    orange="#ff9a57",
    paper="#22262b",
    sizes=("#5a78c8", "#21918c", "#5ec962", "#c8dc2c", "#fde725"),
)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the reader's browser says of itself."""

    dark: bool = False
    narrow: bool = False
    """Whether the window is as narrow as a phone."""
    webgl: bool = True

    @property
    def palette(self) -> Palette:
        """The colours that suit it."""
        return DARK if self.dark else LIGHT


def front_figure(
    standing: Standing, fits: pd.DataFrame, goal: Goal, *, chosen: str | None, front_only: bool, look: Look
) -> Figure:
    """Accuracy against latency of the candidates that keep the limits, with their front, the teacher and the limits.

    Args:
        standing: the sweep; its candidates decide the axes, which stay where they are when a limit moves.
        fits: the candidates within the limits.
        goal: the limits.
        chosen: the run that the page tells about, ringed.
        front_only: whether only the front is drawn.
        look: of the browser.
    """
    everyone = pd.concat([standing.candidates, standing.teacher])
    front = fits[fits["pareto"]] if len(fits) else fits
    traces = [_steps(front, everyone, look)]
    kinds = standing.kinds
    for number, kind in enumerate(sorted(kinds.unique())):
        rows = fits[kinds.loc[fits.index] == kind]
        symbol = SYMBOLS[number % len(SYMBOLS)]
        if not front_only:
            traces.append(_points(standing, rows[~rows["pareto"]], kind, symbol, on_front=False, look=look))
        traces.append(_points(standing, rows[rows["pareto"]], kind, symbol, on_front=True, look=look))
        traces.append(_legend_only(kind, {"symbol": symbol, "color": look.palette.grey, "size": 10}, group=kind))
    if standing.teacher["latency_p50_ms"].notna().any():
        traces.append(_teacher(standing, look))
    ring = {"symbol": "circle-open", "size": 15, "color": look.palette.ink, "line": {"width": 2.5}}
    traces.append(_legend_only("on the front", ring))
    traces += _ring(everyone, chosen, look)
    return {"data": traces, "layout": _front_layout(standing, everyone, goal, look)}


def _points(standing: Standing, rows: pd.DataFrame, kind: str, symbol: str, *, on_front: bool, look: Look) -> Figure:
    if len(rows) > MANY and not look.webgl:
        rows = rows.iloc[:: -(-len(rows) // MANY)]
    return {
        "type": "scattergl" if len(rows) > MANY else "scatter",
        "mode": "markers",
        "name": text(kind),
        "legendgroup": kind,
        "showlegend": False,
        **_places(standing, rows),
        "marker": {
            "symbol": symbol,
            "size": 14 if on_front else (6 if len(standing.candidates) > MANY else 9),
            "opacity": 1 if on_front else 0.65,
            "color": np.log10(rows["size_bytes"] / MB).to_numpy(dtype=np.float32),
            "coloraxis": "coloraxis",
            "line": {"color": look.palette.ink, "width": 2.5 if on_front else 0.5},
        },
        "hovertemplate": HOVER,
    }


def _places(standing: Standing, rows: pd.DataFrame) -> Figure:
    """Where points lie, what they are called, and their marks, which a click sends back."""
    return {
        "x": rows["latency_p50_ms"].to_numpy(dtype=np.float32),
        "y": (100 * rows["val_accuracy"]).to_numpy(dtype=np.float32),
        "text": [
            f"{text(label)}<br>{size:.3g} MB"
            for label, size in zip(standing.labels.loc[rows.index], rows["size_bytes"] / MB, strict=True)
        ],
        "customdata": rows["mark"].to_numpy(dtype=np.int32),
    }


def _steps(front: pd.DataFrame, everyone: pd.DataFrame, look: Look) -> Figure:
    xs, ys = staircase(front["latency_p50_ms"], 100 * front["val_accuracy"], float(everyone["latency_p50_ms"].max()))
    drawn = {"color": look.palette.ink, "width": 1.5, "dash": "dot"}
    name = "best accuracy within a latency"
    return {"type": "scatter", "x": xs, "y": ys, "mode": "lines", "name": name, "hoverinfo": "skip", "line": drawn}


def _teacher(standing: Standing, look: Look) -> Figure:
    marker = {
        "symbol": "star",
        "size": 18,
        "color": look.palette.orange,
        "line": {"color": look.palette.ink, "width": 1.5},
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "teacher",
        "hovertemplate": HOVER,
        "marker": marker,
        **_places(standing, standing.teacher),
    }


def _ring(everyone: pd.DataFrame, chosen: str | None, look: Look) -> list[Figure]:
    if chosen not in everyone.index:
        return []
    marker = {"symbol": "circle-open", "size": 26, "color": look.palette.blue, "line": {"width": 3}}
    rows = everyone.loc[[chosen]]
    return [
        {"type": "scatter", "mode": "markers", "hoverinfo": "skip", "showlegend": False, "marker": marker}
        | {"x": rows["latency_p50_ms"].tolist(), "y": (100 * rows["val_accuracy"]).tolist()}
    ]


def _legend_only(name: str, marker: Figure, *, group: str | None = None) -> Figure:
    shown = {"type": "scatter", "x": [None], "y": [None], "mode": "markers", "name": text(name), "marker": marker}
    return shown | ({"legendgroup": group} if group else {})


def _front_layout(standing: Standing, everyone: pd.DataFrame, goal: Goal, look: Look) -> Figure:
    candidates, sweep = standing.candidates, standing.runs.sweep
    latency, accuracy = everyone["latency_p50_ms"].dropna(), 100 * everyone["val_accuracy"].dropna()
    x: Figure = {"title": {"text": f"latency p50, ms ({text(device_of(candidates, sweep))})", "standoff": 8}}
    if needs_log_axis(latency):
        low, high = float(latency.min()) / 1.25, 1.25 * float(latency.max())
        x |= {"type": "log", "tickvals": log_ticks(low, high), "range": [np.log10(low), np.log10(high)]}
    else:
        x["range"] = _around(latency)
    y: Figure = {"title": {"text": f"accuracy, % ({images_of('val', candidates, sweep)})"}, "range": _around(accuracy)}
    shapes = [line(x0=goal.max_latency_ms, x1=goal.max_latency_ms, look=look)] if goal.max_latency_ms else []
    if goal.min_accuracy:
        level = 100 * goal.min_accuracy
        shapes.append(line(x0=0, x1=1, look=look) | {"xref": "paper", "yref": "y", "y0": level, "y1": level})
    return shared(look) | {
        "xaxis": axis(look) | x,
        "yaxis": axis(look) | y,
        "coloraxis": _sizes(candidates["size_bytes"] / MB, look),
        "legend": {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0, "itemsizing": "trace"},
        "margin": {"l": 52 if look.narrow else 64, "r": 8, "t": 8, "b": 150 if look.narrow else 120},
        "shapes": shapes,
        "uirevision": "front",  # what the reader has zoomed to stays when candidates come
        "dragmode": False if look.narrow else "zoom",  # a finger scrolls the page
    }


def _sizes(sizes: "pd.Series[float]", look: Look) -> Figure:
    """The colours of sizes, on a logarithmic scale: most files are small beside the largest."""
    low, high, colours = float(sizes.min()), float(sizes.max()), look.palette.sizes
    # of sizes that are nearly equal, the scale shows the ends
    ticks = log_ticks(low, high) if high > 2 * low else sorted({low, high})
    bar: Figure = {"title": {"text": "size, MB"}, "thickness": 14, "outlinewidth": 0}
    bar |= {"tickvals": np.log10(ticks).tolist(), "ticktext": [f"{tick:.3g}" for tick in ticks]}
    if look.narrow:
        over = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "thickness": 10}
        bar |= over | {"title": {"text": "size, MB", "side": "top"}}
    return {
        "colorscale": list(zip(np.linspace(0, 1, len(colours)), colours, strict=True)),
        "cmin": np.log10(low),
        "cmax": np.log10(high),
        "colorbar": bar,
    }


def shared(look: Look) -> Figure:
    """What the layouts of all figures have in common."""
    font = {
        "family": "system-ui, Helvetica, Arial, sans-serif",
        "size": 12 if look.narrow else 13,
        "color": look.palette.ink,
    }
    return {
        "template": "none",
        "font": font,
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": look.palette.paper, "font": {"color": look.palette.ink}},
    }


def axis(look: Look) -> Figure:
    """What all axes have in common."""
    return {
        "gridcolor": look.palette.grid,
        "zeroline": False,
        "linecolor": "#888",
        "ticks": "outside",
        "automargin": True,
    }


def line(*, x0: float, x1: float, look: Look) -> Figure:
    """A dashed line over the height of a figure."""
    dashes = {"color": look.palette.blue, "width": 1.5, "dash": "dash"}
    return {"type": "line", "x0": x0, "x1": x1, "y0": 0, "y1": 1, "xref": "x", "yref": "paper", "line": dashes}


def _around(values: pd.Series) -> list[float]:
    low, high = float(values.min()), float(values.max())
    room = 0.09 * ((high - low) or abs(high) or 1.0)
    return [low - room, high + room]


def text(words: str) -> str:
    """Words as plotly may draw them: without control characters and passwords, and with no HTML."""
    return escape(plain(words), quote=False)
