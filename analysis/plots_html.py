"""The interactive front: one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analysis.labels import (
    MB,
    dataset_of,
    device_of,
    first_known,
    images_of,
    log_ticks,
    needs_log_axis,
    plain_number,
    staircase,
    trial_label,
)

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "pentagon")
INK = "#1a1a1a"
TEACHER = "#D55E00"
"""Off the size scale, which the teacher would stretch until all candidates look alike."""
MEASURED = (
    ("val_accuracy", "validation accuracy", 100.0, ".2f", "%"),
    ("test_accuracy", "test accuracy", 100.0, ".2f", "%"),
    ("latency_p50_ms", "latency p50", 1.0, ".3f", "ms"),
    ("latency_p90_ms", "latency p90", 1.0, ".3f", "ms"),
    ("latency_p99_ms", "latency p99", 1.0, ".3f", "ms"),
    ("reference_latency_p50_ms", "teacher p50 beside it", 1.0, ".3f", "ms"),
    ("size_bytes", "size", 1 / MB, ".3f", "MB"),
    ("num_params", "parameters", 1.0, ",.0f", ""),
    ("num_nonzero_params", "not zero", 1.0, ",.0f", ""),
    ("macs", "MACs", 1.0, ",.0f", ""),
    ("score", "score", 1.0, ".2f", "points"),
    ("train_time_s", "training", 1.0, ",.0f", "s"),
    ("trial_time_s", "trial", 1.0, ",.0f", "s"),
)
"""Metric, label, factor, format, unit."""
AXIS = {"showgrid": True, "gridcolor": "#e6e6e6", "zeroline": False, "linecolor": "#888", "ticks": "outside"}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
html, body {{ height: 100%; margin: 0; background: #fff; }}
body > div {{ height: 100%; min-height: 480px; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def pareto_html(frame: pd.DataFrame, path: Path, *, sweep: Mapping[str, Any], recipe: Sequence[str]) -> Path:
    """Write accuracy against latency, colour by size, symbol by pruning method, the front outlined.

    plotly.js is inside the file (4.8 MB), so it also works offline and in MLflow's sandboxed frame.

    Args:
        frame: finished candidates and the teacher (`stage` = teacher), with the bool column `pareto`.
        path: of the file to write.
        sweep: the `sweep.json`, asked for data set, image counts and device where the rows do not say.
        recipe: columns to show as the recipe when the pointer rests on a point.
    """
    figure = go.Figure()
    candidates = frame[frame["stage"] != "teacher"]
    front = candidates[candidates["pareto"]]
    sizes = candidates["size_bytes"].dropna() / MB
    columns = _recipe_columns(candidates, recipe)
    _add_step_line(figure, front, float(frame["latency_p50_ms"].max()))
    for symbol, (method, rows) in zip(SYMBOLS * 9, _by_method(candidates), strict=False):
        _add_points(figure, rows, name=method, symbol=symbol, columns=columns)
    _add_teacher(figure, frame[frame["stage"] == "teacher"])
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        name="on the front (accuracy, latency, size)",
        marker={"symbol": "circle-open", "size": 14, "color": INK, "line": {"width": 2.5}},
    )
    headline = escape(f"{dataset_of(frame, sweep)}: accuracy against latency of one image")
    _lay_out(figure, frame, _title(frame, sweep, headline), images_of("val", frame, sweep), sizes)
    body = figure.to_html(
        full_html=False, include_plotlyjs=True, config={"displaylogo": False, "responsive": True}, div_id="front"
    )
    path.write_text(PAGE.format(title=headline, body=body), encoding="utf-8")
    return path


def _by_method(candidates: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    if "pruning_method" not in candidates.columns:
        return [("candidates", candidates)]
    names = candidates["pruning_method"].fillna("not pruned").astype(str)
    return [(str(name), rows) for name, rows in candidates.groupby(names)]


def _add_points(
    figure: go.Figure, rows: pd.DataFrame, *, name: str, symbol: str, columns: tuple[list[str], list[str]]
) -> None:
    on_front = rows["pareto"].tolist()
    figure.add_scatter(
        x=rows["latency_p50_ms"].tolist(),
        y=(100 * rows["val_accuracy"]).tolist(),
        mode="markers",
        name=escape(name),
        text=[_hover(row, *columns) for _, row in rows.iterrows()],
        hoverinfo="text",
        marker={
            "symbol": symbol,
            "size": [14 if mark else 9 for mark in on_front],
            "opacity": [1.0 if mark else 0.6 for mark in on_front],
            "color": (rows["size_bytes"] / MB).tolist(),
            "coloraxis": "coloraxis",
            "line": {"color": INK, "width": [2.5 if mark else 0.5 for mark in on_front]},
        },
    )


def _add_step_line(figure: go.Figure, front: pd.DataFrame, end: float) -> None:
    xs, ys = staircase(front["latency_p50_ms"], 100 * front["val_accuracy"], end)
    figure.add_scatter(
        x=xs,
        y=ys,
        mode="lines",
        name="best accuracy within a latency",
        hoverinfo="skip",
        line={"color": INK, "width": 1.5, "dash": "dot"},
    )


def _add_teacher(figure: go.Figure, teacher: pd.DataFrame) -> None:
    if teacher.empty:
        return
    row = teacher.iloc[0]
    figure.add_scatter(
        x=[row["latency_p50_ms"]],
        y=[100 * row["val_accuracy"]],
        mode="markers+text",
        name="teacher",
        text=["teacher"],
        textposition="bottom center",
        textfont={"size": 14},
        hovertext=[_hover(row, [], [])],
        hoverinfo="text",
        cliponaxis=False,
        marker={
            "symbol": "star",
            "size": 20,
            "color": TEACHER,
            "line": {"color": INK, "width": 1.5},
        },
    )


def _recipe_columns(candidates: pd.DataFrame, recipe: Sequence[str]) -> tuple[list[str], list[str]]:
    """The recipe's columns: those that the sweep varied, and the rest."""
    varied = [name for name in recipe if candidates[name].nunique(dropna=False) > 1]
    return varied, [name for name in recipe if name not in varied]


def _hover(row: pd.Series, varied: Sequence[str], fixed: Sequence[str]) -> str:
    """Pseudo-HTML that plotly draws; every text from outside is escaped."""
    lines = [f"<b>{escape(trial_label(row))}</b>{' on the front' if row['pareto'] else ''}"]
    for name, label, factor, spec, unit in MEASURED:
        if pd.notna(row.get(name)):
            count = row.get({"val_accuracy": "num_val", "test_accuracy": "num_test"}.get(name, ""))
            images = f" (n = {int(count):,})" if pd.notna(count) else ""
            lines.append(f"{label} {format(factor * row[name], spec)} {unit}{images}".rstrip())
    lines += [f"<b>{escape(name)} {escape(plain_number(row[name]))}</b>" for name in varied if pd.notna(row[name])]
    rest = [f"{escape(name)} {escape(plain_number(row[name]))}" for name in fixed if pd.notna(row[name])]
    lines += ["<i>" + ", ".join(rest[start : start + 3]) + "</i>" for start in range(0, len(rest), 3)]
    return "<br>".join(lines)


def _title(frame: pd.DataFrame, sweep: Mapping[str, Any], headline: str) -> str:
    teacher, student = (first_known(name, frame, sweep) or name for name in ("teacher_model", "student_model"))
    count = int((frame["stage"] != "teacher").sum())
    facts = f"{teacher} to {student}, {count} finished trials; latency of the ONNX file on {device_of(frame, sweep)}"
    return f"<b>{headline}</b><br><span style='font-size:14px'>{escape(facts, quote=False)}</span>"


def _lay_out(figure: go.Figure, frame: pd.DataFrame, title: str, split: str, sizes: pd.Series) -> None:
    latency = frame["latency_p50_ms"].dropna()
    scale: dict[str, Any] = {"type": "linear"}
    if needs_log_axis(latency):
        scale = {"type": "log", "tickvals": log_ticks(latency.min() / 2, 2 * latency.max())}
    bar = {"title": "size, MB", "thickness": 18}
    figure.update_layout(
        title={"text": title, "x": 0.02, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 24}},
        template="none",
        font={"family": "Helvetica, Arial, sans-serif", "size": 14, "color": INK},
        hoverlabel={"bgcolor": "white", "align": "left", "font": {"size": 12}},
        # At the bottom of the page, not under the axis: five rows in a narrow frame must not meet the axis title.
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0.01, "x": 0, "itemsizing": "trace"},
        coloraxis={"colorscale": "Viridis", "cmin": float(sizes.min()), "cmax": float(sizes.max()), "colorbar": bar},
        margin={"l": 80, "r": 30, "t": 85, "b": 185},
        xaxis=AXIS | {"title": {"text": "latency p50, ms", "standoff": 8}} | scale,
        yaxis=AXIS | {"title": f"accuracy, % ({split})"},
    )
