"""What happens on the page: a pulse that looks for new records, sliders that filter, a choice that tells about one."""

import time
from collections.abc import Sequence
from typing import Any

import dash
from dash import ALL, ClientsideFunction, Dash, Input, Output, State
from dash.exceptions import PreventUpdate

from analysis.reading.runs import read_curves
from analysis.reading.wording import in_words
from analysis.serving import candidates as words
from analysis.serving import page
from analysis.serving.downloads import Downloads
from analysis.serving.figures import Look, front_figure
from analysis.serving.limits import LIMITS, ends_of, fitting, goal_of, moved, said
from analysis.serving.watching import Standing, Watched
from trainables.config.escaping import plain

FILTER = {
    "_version": Input("version", "data"),
    "values": [Input(limit.name, "value") for limit in LIMITS],
    "only": Input("only", "n_clicks"),
}


class Wiring:
    """The callbacks of one page."""

    def __init__(self, watched: Watched, downloads: Downloads, tracking_uri: str, prefix: str) -> None:
        """`prefix` begins the addresses of files: `/TOKEN/`."""
        self._watched, self._downloads, self._uri, self._prefix = watched, downloads, tracking_uri, prefix

    def connect(self, app: Dash) -> None:
        """Tell Dash which element moves which."""
        app.layout = lambda: page.page(self._watched.look())
        app.callback(
            output=[
                *(Output(place, "children") for place in ("facts", "read")),
                *(Output(store, "data") for store in ("version", "pulsed")),
            ],
            inputs={"_beats": Input("pulse", "n_intervals")},
            state={"version": State("version", "data")},
        )(self._pulse)
        app.callback(
            output=[Output(limit.name, part) for limit in LIMITS for part in ("min", "max", "step", "value")],
            inputs={"_version": Input("version", "data"), "clicks": Input("loosen", "n_clicks")},
            state={"stands": [[State(limit.name, part) for part in ("min", "max", "value")] for limit in LIMITS]},
        )(self._move)
        app.callback(
            output=[
                *(Output(place, "children") for place in ("fitting", "rows", "range")),
                *(Output(f"{limit.name}-said", "children") for limit in LIMITS),
                *(Output(button, "disabled") for button in ("previous", "next")),
                Output("only", "aria-pressed"),
                Output("first", "data"),
            ],
            inputs=FILTER | {"_turns": [Input("previous", "n_clicks"), Input("next", "n_clicks")]},
            state={"first": State("first", "data")},
        )(self._list)
        app.callback(
            output=Output("front", "figure"),
            inputs=FILTER | {"chosen": Input("chosen", "data"), "look": Input("look", "data")},
        )(self._draw)
        app.callback(
            output=Output("chosen", "data"),
            inputs={"click": Input("front", "clickData"), "_clicks": Input({"show": ALL}, "n_clicks")},
            prevent_initial_call=True,
        )(self._choose)
        app.callback(
            output=Output("detail", "children"),
            inputs={"chosen": Input("chosen", "data"), "look": Input("look", "data")},
            prevent_initial_call=True,
        )(self._tell)
        app.clientside_callback(ClientsideFunction("page", "look"), Output("look", "data"), Input("look", "id"))
        app.clientside_callback(
            ClientsideFunction("page", "focus"),
            Output("focused", "data"),
            Input("detail", "children"),
            State("chosen", "data"),
            prevent_initial_call=True,
        )
        app.clientside_callback(ClientsideFunction("page", "heard"), Output("lost", "hidden"), Input("pulsed", "data"))

    def _pulse(self, _beats: int | None, version: int | None) -> tuple[Any, ...]:
        standing = self._watched.look()
        trouble = self._watched.trouble
        read = f"Not read since {_clock(standing)}: {plain(trouble)}" if trouble else f"Read at {_clock(standing)}."
        if standing.version == version:
            return dash.no_update, read, dash.no_update, time.time()
        return page.facts_of(standing), read, standing.version, time.time()

    def _move(self, _version: int | None, clicks: int | None, stands: Sequence[Sequence[Any]]) -> list[Any]:
        placed: list[Any] = []
        for limit, (low, high, value) in zip(LIMITS, stands, strict=True):
            ends = ends_of(limit, self._watched.standing.candidates)
            loosened = clicks and dash.ctx.triggered_id == "loosen"
            kept = ends.loose(limit) if loosened else moved(limit, value, (low, high), ends)
            placed += [ends.low, ends.high, ends.step, kept]
        return placed

    def _list(
        self, _version: int | None, values: Sequence[Any], only: int | None, _turns: Sequence[Any], first: int
    ) -> list[Any]:
        standing = self._watched.standing
        everyone = standing.candidates
        fits = fitting(everyone, goal_of(tuple(values), everyone))
        shown = fits[fits["pareto"]] if _pressed(only) and len(fits) else fits
        step = {"previous": -words.ROWS, "next": words.ROWS}.get(str(dash.ctx.triggered_id), 0)
        first = max(0, first + step) if step else (first if dash.ctx.triggered_id == "version" else 0)
        first = first if first < len(shown) else 0
        last = min(first + words.ROWS, len(shown))
        span = f"{first + 1:,} to {last:,} of {len(shown):,}" if len(shown) else "none"
        told = [said(limit, value, ends_of(limit, everyone)) for limit, value in zip(LIMITS, values, strict=True)]
        rows = words.table_rows(standing, shown, first)
        pressed = str(_pressed(only)).lower()
        return [_fitting_words(standing, fits), rows, span, *told, first == 0, last >= len(shown), pressed, first]

    def _draw(
        self,
        _version: int | None,
        values: Sequence[Any],
        only: int | None,
        chosen: str | None,
        look: dict[str, bool] | None,
    ) -> dict[str, Any]:
        if look is None:
            raise PreventUpdate
        standing = self._watched.standing
        goal = goal_of(tuple(values), standing.candidates)
        if standing.candidates.empty:
            return {"data": [], "layout": {"xaxis": {"visible": False}, "yaxis": {"visible": False}}}
        fits = fitting(standing.candidates, goal)
        return front_figure(standing, fits, goal, chosen=chosen, front_only=_pressed(only), look=Look(**look))

    def _choose(self, click: dict[str, Any] | None, _clicks: list[int | None]) -> str:
        by = dash.ctx.triggered_id
        if isinstance(by, dict):
            # Rows that have just come call, too: only a click has a number.
            mark = by["show"] if dash.ctx.triggered[0]["value"] else None
        else:
            mark = click["points"][0].get("customdata") if click else None
        chosen = self._watched.run_of(mark) if isinstance(mark, int) else None
        if chosen is None:
            raise PreventUpdate
        return chosen

    def _tell(self, chosen: str | None, look: dict[str, bool] | None) -> list[Any]:
        standing = self._watched.standing
        if chosen is None or look is None or chosen not in {*standing.candidates.index, *standing.teacher.index}:
            raise PreventUpdate
        recorded = chosen in standing.runs.frame.index  # a teacher told of by sweep.json alone has no run
        curves = read_curves(self._uri, [chosen] if recorded else [])
        offered = self._downloads.offered(standing.runs, chosen)
        links = [(name, f"{self._prefix}file/{chosen}/{name}", size) for name, size in offered]
        return words.detail(standing, chosen, curves, links, Look(**look))


def _fitting_words(standing: Standing, fits: Any) -> str:
    """How many fit, and the best of them; a screen reader says it whenever it changes."""
    if standing.candidates.empty:
        return "No finished candidate yet; the page shows each as it comes."
    if fits.empty:
        return f"None of {len(standing.candidates):,} candidates fits; loosen a limit."
    best = in_words(fits.iloc[0]).replace(":  ", ": ").replace("  ", ", ")
    return plain(f"{len(fits):,} of {len(standing.candidates):,} fit. The most accurate is {best}.")


def _pressed(clicks: int | None) -> bool:
    """Whether a button that stays down is down, after so many clicks."""
    return (clicks or 0) % 2 == 1


def _clock(standing: Standing) -> str:
    return time.strftime("%H:%M:%S", time.localtime(standing.read_at))
