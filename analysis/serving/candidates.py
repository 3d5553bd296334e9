"""What the page says of candidates in words: the table of those within the limits, and everything about one of them."""

import shlex
from collections.abc import Sequence
from typing import Any

import pandas as pd
from dash import dcc, html

from analysis.plots.page import COUNT_OF, MEASURED
from analysis.reading.wording import MB, plain_number, trial_label
from analysis.serving.detail_figures import curve_figure, latency_figure
from analysis.serving.figures import Figure, Look
from analysis.serving.watching import Standing
from trainables.config.escaping import plain

ROWS = 50  # of the table at once: a screen reader goes through them one by one
STILL = {"displayModeBar": False, "responsive": True}
HINT = "Choose a point or a row: its recipe, curves, latency and files appear here."


def table_rows(standing: Standing, fits: pd.DataFrame, first: int) -> list[Any]:
    """The rows of the table from the candidate at `first` on, the most accurate on top; each begins with its button."""
    return [
        html.Tr(
            [
                html.Th(
                    html.Button(plain(trial_label(row)), id={"show": int(row["mark"])}, className="plain"), scope="row"
                ),
                html.Td(_measured(row, "val_accuracy")),
                html.Td(_measured(row, "test_accuracy"), className="wide"),
                html.Td(_measured(row, "latency_p50_ms")),
                html.Td(_measured(row, "size_bytes")),
                html.Td(plain(str(standing.kinds.loc[str(run_id)])), className="wide words"),
                html.Td(_standing_of(row, standing.names.get(str(run_id), "")), className="words"),
            ]
        )
        for run_id, row in fits.iloc[first : first + ROWS].iterrows()
    ]


def detail(
    standing: Standing, run_id: str, curves: pd.DataFrame, links: Sequence[tuple[str, str, int]], look: Look
) -> list[Any]:
    """Everything about one candidate, or about the teacher.

    Args:
        standing: the sweep.
        run_id: of the candidate.
        curves: what it logged while it trained, as `analysis.reading.runs.read_curves` returns it.
        links: (name, address, bytes) of its files.
        look: of the browser.
    """
    everyone = pd.concat([standing.candidates, standing.teacher])
    row = everyone.loc[[run_id]].iloc[0]
    teacher = standing.teacher.iloc[0] if standing.teacher["latency_p50_ms"].notna().any() else None
    label = plain(trial_label(row))
    states = [standing.names.get(run_id, ""), "on the front" if row["pareto"] else ""]
    if row["stage"] != "teacher":
        states.append("may be optimal" if row["may_be_optimal"] else "ruled out by another one")
    return [
        html.H2(label, id="detail-title"),
        html.P("; ".join(filter(None, states))),
        *_files(label, links),
        html.P(["To ship it: ", html.Code(_export(row))]),
        *_recipe(standing, row),
        html.H3("Measured"),
        html.Table(html.Tbody(_numbers(row))),
        html.H3("Latency"),
        _graph(latency_figure(row, teacher, look), _latency_words(row)),
        *_curves(curves, look),
    ]


def _files(label: str, links: Sequence[tuple[str, str, int]]) -> list[Any]:
    if not links:
        return [html.P("Its files are not below --out, so none is offered here.")]
    items = [
        html.Li(
            [html.A(name, href=address, download=True, **{"aria-label": f"Download {name} of {label}"}), _size(size)]
        )
        for name, address, size in links
    ]
    return [html.H3("Files"), html.Ul(items, className="files")]


def _recipe(standing: Standing, row: "pd.Series[Any]") -> list[Any]:
    set_here = [name for name in standing.runs.params if not pd.isna(row.get(name))]
    own = [_pair(name, plain_number(row[name])) for name in set_here if name in standing.varied]
    shared = [_pair(name, plain_number(row[name])) for name in set_here if name not in standing.varied]
    parts: list[Any] = [html.H3("Recipe")]
    if own:
        parts.append(html.Table(html.Tbody(own)))
    if shared:
        summary = html.Summary(f"{len(shared)} settings that are the same in every trial")
        parts.append(html.Details([summary, html.Table(html.Tbody(shared))]))
    return parts if own or shared else []


def _numbers(row: "pd.Series[Any]") -> list[Any]:
    pairs = []
    for name, label, factor, digits, unit in MEASURED:
        if pd.notna(row.get(name)):
            count = row.get(COUNT_OF.get(name, ""))
            counted = f" (n = {int(count):,})" if count is not None and pd.notna(count) else ""
            pairs.append(_pair(label + counted, f"{factor * float(row[name]):,.{digits}f} {unit}".strip()))
    for name, label in (("latency_device", "measured on"), ("latency_verdict", "latency is")):
        if isinstance(row.get(name), str):
            pairs.append(_pair(label, row[name]))
    return pairs


def _curves(curves: pd.DataFrame, look: Look) -> list[Any]:
    figures = [(metric, curve_figure(curves, metric, look)) for metric in ("accuracy", "loss")]
    graphs = [_graph(figure, _curve_words(curves, metric)) for metric, figure in figures if figure]
    return [html.H3("Training"), *graphs] if graphs else []


def _graph(figure: Figure, words: str) -> Any:
    """A small figure with the words that a screen reader says in its place."""
    drawn = dcc.Graph(figure=figure, config=STILL, style={"height": "240px"})
    return html.Div(drawn, role="img", **{"aria-label": words})


def _latency_words(row: "pd.Series[Any]") -> str:
    known = [
        f"{name} {float(row[column]):.3g} ms"
        for column, name in (("latency_p50_ms", "p50"), ("latency_p90_ms", "p90"), ("latency_p99_ms", "p99"))
        if pd.notna(row.get(column))
    ]
    return f"Distribution of the latency of one image: {', '.join(known)}."


def _curve_words(curves: pd.DataFrame, metric: str) -> str:
    told = []
    for stage in ("teacher", "student", "recovery"):
        part = curves[curves["metric"] == f"{stage}_val_{metric}"].sort_values("step")
        if len(part):
            first, last = (
                f"{100 * v:.2f} %" if metric == "accuracy" else f"{v:.3g}" for v in part["value"].iloc[[0, -1]]
            )
            told.append(
                f"{stage}: {first} after epoch {int(part['step'].iloc[0])}, {last} after {int(part['step'].iloc[-1])}"
            )
    return f"Validation {metric} by epoch; {'; '.join(told)}."


def _pair(name: str, value: Any) -> Any:
    return html.Tr([html.Th(plain(name), scope="row"), html.Td(plain(str(value)))])


def _measured(row: "pd.Series[Any]", column: str) -> str:
    """A number of the table, which has the unit in its head."""
    value = row.get(column)
    if value is None or pd.isna(value):
        return "-"
    return (
        f"{100 * value:.2f}" if column.endswith("accuracy") else f"{value / (MB if column == 'size_bytes' else 1):#.3g}"
    )


def _standing_of(row: "pd.Series[Any]", names: str) -> str:
    return ", ".join(filter(None, ("front" if row["pareto"] else "", names)))


def _size(count: int) -> str:
    return f" {count / MB:.2f} MB" if count >= MB / 100 else f" {count:,} bytes"


def _export(row: "pd.Series[Any]") -> str:
    which = "teacher" if row["stage"] == "teacher" else str(int(row["trial_number"]))
    name = shlex.quote(f"{row['sweep']}@{which}")
    return plain(f"python -m analysis export {name} --to ship")
