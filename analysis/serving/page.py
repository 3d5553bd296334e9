"""The page's elements, all native: headings, sliders, buttons and tables that keyboards and screen readers know."""

from typing import Any

from dash import dcc, html

from analysis.reading.facts import dataset_of, device_of, models_of
from analysis.serving.candidates import HINT, STILL
from analysis.serving.limits import LIMITS, Limit, ends_of
from analysis.serving.watching import Standing
from trainables.config.escaping import plain

LOOK_EVERY_MS = 2000
COLUMNS = (  # head, class
    ("candidate", "words"),
    ("validation accuracy, %", ""),
    ("test accuracy, %", "wide"),
    ("p50, ms", ""),
    ("size, MB", ""),
    ("kind", "wide words"),
    ("stands out", "words"),
)
TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
{%metas%}
<title>{%title%}</title>
{%favicon%}
{%css%}
</head>
<body>
<noscript>This page needs JavaScript; `python -m analysis` writes the same front as a table and pictures.</noscript>
{%app_entry%}
{%config%}
{%scripts%}
{%renderer%}
</body>
</html>"""


def title_of(standing: Standing) -> str:
    """The title of the window: the sweep and its data set."""
    return plain(f"{standing.runs.name}: {dataset_of(standing.runs.frame, standing.runs.sweep)}")


def page(standing: Standing) -> Any:
    """The whole page, which the callbacks fill."""
    return html.Div(
        [
            dcc.Interval(id="pulse", interval=LOOK_EVERY_MS),
            *(dcc.Store(id=name) for name in ("version", "pulsed", "look", "chosen", "focused")),
            dcc.Store(id="first", data=0),
            _header(standing),
            html.Div(
                "The server does not answer: start `python -m analysis serve` again, and open the address it prints.",
                id="lost",
                role="alert",
                hidden=True,
            ),
            html.Main(
                [
                    _limits(standing),
                    html.Section(
                        [
                            html.H2("Accuracy against latency", id="front-title"),
                            html.Div(
                                dcc.Graph(id="front", config=STILL, responsive=True, style={"height": "100%"}),
                                role="img",
                                id="front-words",
                                **{
                                    "aria-label": "Accuracy against latency; the table below holds the same candidates."
                                },
                            ),
                        ],
                        className="front",
                        **{"aria-labelledby": "front-title"},
                    ),
                    html.Section(
                        [html.H2("One candidate", id="detail-title"), html.P(HINT)],
                        id="detail",
                        className="detail",
                        tabIndex=-1,
                        **{"aria-labelledby": "detail-title"},
                    ),
                    _table(),
                ]
            ),
        ],
        className="page",
    )


def facts_of(standing: Standing) -> str:
    """What was searched, how far it is, and where latencies were measured."""
    runs, candidates = standing.runs, standing.candidates
    front = int(candidates["pareto"].sum()) if len(candidates) else 0
    parts = [
        models_of(candidates, runs.sweep) or "models not recorded",
        f"{len(candidates):,} finished candidates, {front} on the front",
        f"latency of the ONNX file on {device_of(runs.frame, runs.sweep)}",
    ]
    return plain("; ".join(parts))


def _header(standing: Standing) -> Any:
    return html.Header(
        [
            html.H1(title_of(standing)),
            html.P([html.Span(facts_of(standing), id="facts"), html.Br(), html.Span(id="read")]),
        ]
    )


def _limits(standing: Standing) -> Any:
    return html.Section(
        [
            html.H2("Limits", id="limits-title"),
            *(_slider(limit, standing) for limit in LIMITS),
            html.Div(
                [
                    html.Button("Front only", id="only", **{"aria-pressed": "false"}),
                    html.Button("No limits", id="loosen"),
                ],
                className="choices",
            ),
            html.P(id="fitting", role="status"),
        ],
        className="limits",
        **{"aria-labelledby": "limits-title"},
    )


def _slider(limit: Limit, standing: Standing) -> Any:
    ends = ends_of(limit, standing.candidates)
    return html.Div(
        [
            html.Label(f"{limit.label}, {limit.unit}", htmlFor=limit.name),
            html.Output(id=f"{limit.name}-said", htmlFor=limit.name),
            dcc.Input(
                id=limit.name, type="range", min=ends.low, max=ends.high, step=ends.step, value=ends.loose(limit)
            ),
        ],
        className="slider",
    )


def _table() -> Any:
    heads = [html.Th(text, scope="col", className=kind) for text, kind in COLUMNS]
    return html.Section(
        [
            html.H2("Candidates within the limits", id="table-title"),
            html.Table(
                [html.Thead(html.Tr(heads)), html.Tbody(id="rows")],
                className="candidates",
                **{"aria-labelledby": "table-title"},
            ),
            html.Div(
                [html.Button("Previous", id="previous"), html.Span(id="range"), html.Button("Next", id="next")],
                className="choices",
            ),
        ],
        className="table",
        **{"aria-labelledby": "table-title"},
    )
