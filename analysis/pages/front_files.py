"""The files that show a front: tables, an interactive page, pictures, control arms."""

from pathlib import Path

import pandas as pd

from analysis.findings.front import choose, competing, front_members, hypervolume_curve, mark_front, with_teacher
from analysis.plots.detail import hypervolume_png, latency_png
from analysis.plots.front import metrics_grid_png, pareto_png
from analysis.plots.page import pareto_html
from analysis.reading.doors import write_csv
from analysis.reading.runs import Runs
from trainables.layout import FRONT_PAGE, FRONT_TABLE


def write_front(runs: Runs, folder: Path) -> list[Path]:
    """Write the tables, pareto.html and the pictures of `write_pictures`; returns the files.

    Without a finished candidate there is nothing to draw: only the two tables are written.
    """
    return [*write_tables(runs, folder), *write_page(runs, folder), *write_pictures(runs, folder)]


def write_tables(runs: Runs, folder: Path) -> list[Path]:
    """Write pareto.csv and candidates.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    marked = mark_front(runs.frame, runs.sweep["directions"])
    paths = [folder / FRONT_TABLE, folder / "candidates.csv"]
    for table, path in zip((front_members(runs), marked), paths, strict=True):
        # In a frame, a count is a float if another row lacks it; `convert_dtypes` writes it as 20, not 20.0.
        write_csv(table.convert_dtypes(), path, index=True)
    return paths


def write_page(runs: Runs, folder: Path) -> list[Path]:
    """Write pareto.html if there is a finished candidate."""
    if front_members(runs).empty:
        return []
    page = folder / FRONT_PAGE
    pareto_html(
        _drawn(runs), page, sweep=runs.sweep, recipe=runs.params, hypervolumes=hypervolume_curve(runs), url=runs.url
    )
    return [page]


def write_pictures(runs: Runs, folder: Path) -> list[Path]:
    """Write pareto, metrics_grid, latency and hypervolume as PNG and SVG if there is a finished candidate."""
    front = front_members(runs)
    if front.empty:
        return []
    drawn, sweep = _drawn(runs), runs.sweep
    variants = choose(front, sweep["teacher"])
    return [
        *pareto_png(drawn, folder / "pareto.png", sweep=sweep, variants=variants),
        *metrics_grid_png(drawn, folder / "metrics_grid.png", sweep=sweep, variants=variants),
        *latency_png(drawn, folder / "latency.png", sweep=sweep),
        *hypervolume_png(hypervolume_curve(runs), folder / "hypervolume.png", frame=drawn, sweep=sweep),
    ]


def write_controls(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write controls.csv unless `table`, of `analysis.findings.controls`, is empty; returns the files."""
    if table.empty:
        return []
    path = folder / "controls.csv"
    write_csv(table.convert_dtypes(), path, index=False)
    return [path]


def _drawn(runs: Runs) -> pd.DataFrame:
    """The competing candidates and the teacher, with the columns that `mark_front` adds."""
    return with_teacher(runs, competing(runs))
