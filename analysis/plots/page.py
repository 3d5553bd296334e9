"""The interactive front: one HTML file that needs no network."""

import base64
import gzip
import importlib.util
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd

from analysis.plots.axes import log_ticks, needs_log_axis, staircase
from analysis.reading.facts import dataset_of, device_of, images_of, models_of
from analysis.reading.wording import MB, kinds_of, plain_number, trial_label
from trainables.files import write_text

PAGE = Path(__file__).with_name("front_page.html")
# Metric, label, factor, decimals, unit.
MEASURED = (
    ("val_accuracy", "validation accuracy", 100.0, 2, "%"),
    ("test_accuracy", "test accuracy", 100.0, 2, "%"),
    ("latency_p50_ms", "latency p50", 1.0, 3, "ms"),
    ("latency_p90_ms", "latency p90", 1.0, 3, "ms"),
    ("latency_p99_ms", "latency p99", 1.0, 3, "ms"),
    ("reference_latency_p50_ms", "teacher's own p50", 1.0, 3, "ms"),
    ("energy_per_image_mj", "energy", 1.0, 3, "mJ"),
    ("size_bytes", "size", 1 / MB, 3, "MB"),
    ("num_params", "parameters", 1.0, 0, ""),
    ("num_nonzero_params", "not zero", 1.0, 0, ""),
    ("macs", "MACs", 1.0, 0, ""),
    ("score", "score", 1.0, 2, "points"),
    ("train_time_s", "training", 1.0, 0, "s"),
    ("trial_time_s", "trial", 1.0, 0, "s"),
)
# Accuracy -> the number of images that its interval is computed from.
COUNT_OF = {"val_accuracy": "num_val", "test_accuracy": "num_test"}


def pareto_html(
    frame: pd.DataFrame,
    path: Path,
    *,
    sweep: Mapping[str, Any],
    recipe: Sequence[str],
    hypervolumes: Sequence[tuple[int, float]],
    url: str,
) -> Path:
    """Write one self-contained page: accuracy against latency, parallel coordinates and hypervolume.

    plotly.js and the numbers are compressed with gzip, which every browser can unpack: 2 MB and about 60 bytes more per
    candidate. The page works offline and in MLflow's sandboxed frame. Texts from outside become text nodes.

    Args:
        frame: finished candidates and the teacher (`stage` = teacher), with the columns `pareto` and `may_be_optimal`.
        path: of the file.
        sweep: the `sweep.json`, for data set, image counts and device where the rows do not carry them.
        recipe: columns shown as the recipe of the point under the pointer.
        hypervolumes: (trial number, hypervolume up to it).
        url: of MLflow's pages, for links to runs.
    """
    title = f"{dataset_of(frame, sweep)}: accuracy against latency of one image"
    content = _content(frame, sweep, recipe) | {
        "volume": [[number for number, _ in hypervolumes], [round(volume, 4) for _, volume in hypervolumes]],
        "url": url,
    }
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        facts=escape(_facts(frame, sweep)),
        plotly=_packed(_plotly().read_bytes()),
        data=_packed(json.dumps(content, allow_nan=False).encode()),  # no browser parses NaN
    )
    write_text(path, page)
    return path


def unpacked(page: str) -> dict[str, Any]:
    """The content that `pareto_html` packed into a page."""
    text = page.partition('data: "')[2].partition('"')[0]
    content: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(text)))
    return content


def _content(frame: pd.DataFrame, sweep: Mapping[str, Any], recipe: Sequence[str]) -> dict[str, Any]:
    candidates = frame[frame["stage"] != "teacher"]
    front = candidates[candidates["pareto"]]
    latency = frame["latency_p50_ms"].dropna()
    kinds = kinds_of(candidates).tolist()
    names = sorted(set(kinds))
    metrics = {
        name: {"label": label, "unit": unit, "digits": digits, "count": COUNT_OF.get(name)}
        | {"values": _numbers(factor * candidates[name].astype("float64"))}
        for name, label, factor, digits, unit in MEASURED
        if name in candidates.columns
    }
    varied = [name for name in recipe if name in candidates.columns and candidates[name].nunique(dropna=False) > 1]
    fixed = {name: candidates[name].iloc[0] for name in recipe if name in candidates.columns and name not in varied}
    sizes = candidates["size_bytes"].dropna() / MB
    scale: dict[str, Any] = {"type": "linear"}
    if needs_log_axis(latency):
        scale = {"type": "log", "tickvals": log_ticks(latency.min() / 2, 2 * latency.max())}
    return {
        "count": len(candidates),
        "labels": [trial_label(row) for row in _labelled(candidates)],
        "runs": [str(run_id) for run_id in candidates.index],
        "experiments": [
            str(value) for value in candidates.get("experiment_id", pd.Series("0", index=candidates.index))
        ],
        "pareto": candidates["pareto"].astype(int).tolist(),
        "possible": candidates["may_be_optimal"].astype(int).tolist(),
        "kinds": names,
        "kind": [names.index(kind) for kind in kinds],
        "metrics": metrics,
        "counts": {name: _numbers(candidates[name]) for name in _known(candidates, *COUNT_OF.values())},
        "varied": [{"name": name, "values": _plain(candidates[name])} for name in varied],
        "fixed": {name: plain_number(value) for name, value in fixed.items() if value is not None and value == value},
        "teacher": _teacher(frame[frame["stage"] == "teacher"]),
        "steps": staircase(front["latency_p50_ms"], 100 * front["val_accuracy"], float(latency.max())),
        "sizes": [float(sizes.min()), float(sizes.max())],
        "x_title": "latency p50, ms",
        "y_title": f"accuracy, % ({images_of('val', frame, sweep)})",
        "x_scale": scale,
    }


def _labelled(candidates: pd.DataFrame) -> list[dict[str, Any]]:
    columns = candidates[_known(candidates, "stage", "trial_number", "label")]
    return [{str(name): value for name, value in row.items()} for row in columns.to_dict("records")]


def _teacher(teacher: pd.DataFrame) -> dict[str, float] | None:
    if teacher.empty or pd.isna(teacher["latency_p50_ms"].iloc[0]):
        return None
    row = teacher.iloc[0]
    known = {name: factor * float(row[name]) for name, _, factor, _, _ in MEASURED if pd.notna(row.get(name))}
    return known | {name: int(row[name]) for name in COUNT_OF.values() if pd.notna(row.get(name))}


def _facts(frame: pd.DataFrame, sweep: Mapping[str, Any]) -> str:
    count = int((frame["stage"] != "teacher").sum())
    possible = int(frame["may_be_optimal"].astype(bool).sum())
    models = models_of(frame, sweep) or "models not recorded"
    return (
        f"{models}, {count:,} finished trials, {int(frame['pareto'].sum())} on the front,"
        f" {possible:,} that may be optimal; latency of the ONNX file on {device_of(frame, sweep)}."
        " Click a point to keep its card and open its run."
    )


def _known(frame: pd.DataFrame, *names: str) -> list[str]:
    return [name for name in names if name in frame.columns]


def _numbers(column: "pd.Series[Any]") -> list[float | None]:
    """Six digits of each number; None for one that is missing or not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in column.astype("float64").tolist()]


def _plain(column: "pd.Series[Any]") -> list[Any]:
    """Numbers and truth values unchanged, everything else as text; None for a setting that is off."""
    values = [None if value is None or value != value else value for value in column.tolist()]
    return [value if value is None or isinstance(value, bool | int | float) else str(value) for value in values]


def _packed(content: bytes) -> str:
    # Without the time of writing, the same sweep gives the same page.
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()


def _plotly() -> Path:
    """The path of plotly.js, found without importing the Python package, which takes a second."""
    found = importlib.util.find_spec("plotly")
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js"
