"""The figures about one candidate: how it trained, and the distribution of its latency."""

from typing import Any

import pandas as pd

from analysis.plots.axes import log_ticks, needs_log_axis
from analysis.reading.wording import trial_label
from analysis.serving.figures import Figure, Look, axis, line, shared, text

PERCENTILES = {"latency_p50_ms": 50, "latency_p90_ms": 90, "latency_p99_ms": 99}
STAGES = ("teacher", "student", "recovery")
SPLITS = {"train": "training", "val": "validation"}


def curve_figure(curves: pd.DataFrame, metric: str, look: Look) -> Figure | None:
    """One metric by epoch, training and validation, one stage after the other; None if no epoch was recorded.

    Args:
        curves: of one run, as `analysis.reading.runs.read_curves` returns them.
        metric: `accuracy` or `loss`.
        look: of the browser.
    """
    traces: list[Figure] = []
    starts: dict[str, float] = {}
    before = 0.0
    for stage in STAGES:
        parts = {split: curves[curves["metric"] == f"{stage}_{split}_{metric}"].sort_values("step") for split in SPLITS}
        known = {split: part for split, part in parts.items() if len(part)}
        for split, part in known.items():
            named = SPLITS[split] in {trace["name"] for trace in traces}
            traces.append(_curve(part, stage, split, before, metric, look) | {"showlegend": not named})
        if known:
            starts[stage] = before
            before += max(float(part["step"].max()) for part in known.values())
    if not traces:
        return None
    layout = _small_layout(look, x="epoch", y="accuracy, %" if metric == "accuracy" else "loss, nats")
    place = {"y": 1.02, "yref": "paper", "showarrow": False, "xanchor": "left", "yanchor": "bottom"}
    layout["annotations"] = [place | {"x": start + 0.5, "text": stage} for stage, start in starts.items()]
    later = [start + 0.5 for start in starts.values() if start]
    layout["shapes"] = [line(x0=at, x1=at, look=look) for at in later]
    return {"data": traces, "layout": layout}


def _curve(part: pd.DataFrame, stage: str, split: str, before: float, metric: str, look: Look) -> Figure:
    dash, colour = ("solid", look.palette.blue) if split == "val" else ("dot", look.palette.grey)
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(part) < 40 else "lines",
        "x": (before + part["step"]).tolist(),
        "y": (part["value"] * (100 if metric == "accuracy" else 1)).round(4).tolist(),
        "name": SPLITS[split],
        "legendgroup": split,
        "line": {"dash": dash, "color": colour, "width": 2},
        "customdata": part["step"].tolist(),
        "hovertemplate": f"{stage}, epoch %{{customdata}}<br>{SPLITS[split]} %{{y:.4g}}<extra></extra>",
    }


def latency_figure(row: "pd.Series[Any]", teacher: "pd.Series[Any] | None", look: Look) -> Figure:
    """The distribution of a file's latency as the records hold it, its percentiles, beside the teacher's."""
    shown = [(row, look.palette.blue, "circle")]
    if teacher is not None and row["stage"] != "teacher":
        shown.append((teacher, look.palette.orange, "diamond"))
    traces = [_quantiles(one, colour, symbol) for one, colour, symbol in shown]
    values = [value for trace in traces for value in trace["x"]]
    layout = _small_layout(look, x="latency of one image, ms", y="runs up to it, %")
    layout["yaxis"] |= {"range": [40, 104], "tickvals": [50, 90, 99]}
    if needs_log_axis(values):
        layout["xaxis"] |= {"type": "log", "tickvals": log_ticks(min(values) / 2, 2 * max(values))}
    else:
        layout["xaxis"] |= {"rangemode": "tozero"}
    return {"data": traces, "layout": layout}


def _quantiles(row: "pd.Series[Any]", colour: str, symbol: str) -> Figure:
    known = {share: float(row[name]) for name, share in PERCENTILES.items() if pd.notna(row.get(name))}
    half = row.get("latency_half_width")
    width = known[50] * float(half) if 50 in known and pd.notna(half) else 0.0
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(known.values()),
        "y": list(known),
        "name": text(trial_label(row)),
        "line": {"color": colour, "width": 2},
        "marker": {"symbol": symbol, "size": 9},
        "error_x": {"type": "data", "array": [width if share == 50 else 0.0 for share in known], "thickness": 2},
        "hovertemplate": "%{y} % of the runs within %{x:.4g} ms<extra></extra>",
    }


def _small_layout(look: Look, *, x: str, y: str) -> Figure:
    return shared(look) | {
        "xaxis": axis(look) | {"title": {"text": x, "standoff": 6}},
        "yaxis": axis(look) | {"title": {"text": y}},
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.32, "x": 0},
        "margin": {"l": 54, "r": 10, "t": 26, "b": 70},
        "dragmode": False,
    }
