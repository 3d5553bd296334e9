"""The Pareto front of a sweep: which candidates are on it, and the files that show it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from analysis.labels import MB, device_of, images_of, merged_names, trial_label
from analysis.pareto import (
    AXES,
    hypervolume,
    hypervolume_over_trials,
    knee,
    latency_ratio,
    non_dominated,
    normalised,
    objectives,
)
from analysis.plots import metrics_grid_png, pareto_png
from analysis.plots_html import pareto_html
from analysis.runs import Runs


def retrained(frame: pd.DataFrame) -> pd.Series:
    """True for champions that were trained again and for their control arms: `analysis.controls` reports those."""
    if "control" not in frame.columns:
        return pd.Series(False, index=frame.index)
    return frame["control"].notna() & (frame["stage"] == "candidate")


def mark_front(frame: pd.DataFrame, directions: Mapping[str, str]) -> pd.DataFrame:
    """A copy with the column `pareto`: True for candidates that no other candidate dominates.

    Only finished trials compete, and only with all objectives finite: a stopped, infeasible or failed one is never on
    a front, however good it looked. Neither the teacher nor retrained champions and controls compete.
    """
    marked = frame.assign(pareto=False)
    competing = frame[(frame["status"] == "finished") & (frame["stage"] == "candidate") & ~retrained(frame)]
    if len(competing):
        points = objectives(competing, directions)
        marked.loc[points.index[non_dominated(points.to_numpy())], "pareto"] = True
    return marked


def front_members(runs: Runs) -> pd.DataFrame:
    """The candidates on the front, most accurate first."""
    marked = mark_front(runs.frame, runs.sweep["directions"])
    front = marked[marked["pareto"]]
    return front.sort_values(["val_accuracy", "latency_p50_ms"], ascending=[False, True]) if len(front) else front


def with_teacher(runs: Runs, frame: pd.DataFrame) -> pd.DataFrame:
    """The teacher's row on top of a frame; from `sweep.json` where MLflow has no run of it."""
    if (frame["stage"] == "teacher").any():
        return frame
    teacher = runs.frame[(runs.frame["stage"] == "teacher") & (runs.frame["status"] == "finished")].head(1)
    if teacher.empty:
        numbers = {key: value for key, value in runs.sweep["teacher"].items() if np.isscalar(value)}
        row = {**numbers, "stage": "teacher", "status": "finished", "control": "teacher", "sweep": runs.name}
        teacher = pd.DataFrame([row], index=pd.Index(["teacher"], name="run_id"))
        teacher = teacher.reindex(columns=[*frame.columns.drop("pareto", errors="ignore")])
    return pd.concat([teacher.assign(pareto=False), frame]) if len(frame) else teacher.assign(pareto=False)


def front_hypervolume(runs: Runs) -> float:
    """Hypervolume of the front, percentage points x doublings of latency x doublings of size."""
    front = front_members(runs)
    if front.empty:
        return 0.0
    points = normalised(front, runs.sweep["teacher"]).dropna()
    return hypervolume(points[list(AXES)].to_numpy(), [runs.sweep["reference_point"][axis] for axis in AXES])


def hypervolume_curve(runs: Runs) -> list[tuple[int, float]]:
    """(trial number, hypervolume of all candidates up to it), in order of the trials."""
    frame = runs.frame[~retrained(runs.frame)]
    frame = frame[(frame["status"] == "finished") & (frame["stage"] == "candidate")]
    if frame.empty:
        return []
    points = normalised(frame, runs.sweep["teacher"])[list(AXES)].to_numpy()
    volumes = hypervolume_over_trials(points, [runs.sweep["reference_point"][axis] for axis in AXES])
    return [(int(number), float(volume)) for number, volume in zip(frame["trial_number"], volumes, strict=True)]


def choose(front: pd.DataFrame, teacher: Mapping[str, float]) -> dict[str, str]:
    """The variants worth a name: `most_accurate`, `balanced`, `fastest`, `smallest` -> run id; ties by accuracy.

    Raises:
        ValueError: if the front is empty.
    """
    if front.empty:
        raise ValueError("A choice needs at least one candidate on the front, but there is none.")
    ranked = front.sort_values("val_accuracy", ascending=False, kind="stable")
    points = normalised(ranked, teacher).dropna()
    # Latency and size move together: as two axes they would outvote accuracy.
    cost = (points["log2_latency_vs_teacher"] + points["log2_size_vs_teacher"]) / 2
    balanced = knee(np.column_stack([points["error_points"], cost]))
    return {
        "most_accurate": str(ranked.index[0]),
        "balanced": str(points.index[balanced]),
        "fastest": str(ranked["latency_p50_ms"].idxmin()),
        "smallest": str(ranked["size_bytes"].idxmin()),
    }


def front_table(frame: pd.DataFrame, *, variants: Mapping[str, str] | None = None) -> Table:
    """The rows given as a table, the teacher on top; ratios are against the teacher among them.

    Args:
        frame: front members and the teacher (`stage` = teacher), as `with_teacher` returns them.
        variants: name -> run id, as `choose` returns them, told in the caption.
    """
    names = merged_names(variants or {})
    teachers = frame["stage"] == "teacher"
    rows = pd.concat([frame[teachers], frame[~teachers]])
    teacher: dict[Any, Any] = rows.iloc[0].to_dict() if teachers.any() else {}
    labels = {str(run_id): trial_label(row) for run_id, row in frame.iterrows()}
    chosen = [f"{name}: {labels[run_id]}" for run_id, name in names.items()]
    about = f"ms: p50 of one image, {device_of(rows, {})}; x: of the teacher's; T: temperature"
    counts = f"{images_of('val', rows, {})}; {images_of('test', rows, {})}"
    caption = "\n".join([counts, about, "; ".join(chosen)])
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, caption=caption, caption_justify="left")
    # Headers of two lines let the table fit a terminal of 80 columns.
    table.add_column("trial", no_wrap=True)
    for header in ("val\n%", "test\n%", "ms", "x", "MB", "x", "T", "alpha"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("pruning", no_wrap=True)
    speed = latency_ratio(rows, teacher) if teacher else pd.Series(np.nan, index=rows.index)
    for ratio, (_, row) in zip(speed, rows.iterrows(), strict=True):
        is_teacher = row["stage"] == "teacher"
        table.add_row(
            "teacher" if is_teacher else _text(row.get("trial_number"), ".0f"),
            _text(100 * _float(row.get("val_accuracy")), ".2f"),
            _text(100 * _float(row.get("test_accuracy")), ".2f"),
            _text(row.get("latency_p50_ms"), "#.3g"),
            _text(ratio, ".2f"),
            _text(_float(row.get("size_bytes")) / MB, "#.3g"),
            _text(_float(row.get("size_bytes")) / _float(teacher.get("size_bytes")), ".2f"),
            "" if is_teacher else _text(row.get("temperature"), "g"),
            "" if is_teacher else _text(row.get("alpha"), "g"),
            "" if is_teacher else escape(_pruning(row)),
            style="dim" if is_teacher else None,
        )
    return table


def _pruning(row: pd.Series) -> str:
    """`structured 0.3`, with the loss before it where it is not plain `kd`."""
    loss = row.get("kd_loss", "kd")
    named = "" if loss == "kd" or pd.isna(loss) else f"{loss}, "
    return f"{named}{row.get('pruning_method')} {_text(row.get('pruning_ratio'), 'g')}"


def write_front(runs: Runs, folder: Path) -> list[Path]:
    """Write pareto.csv, candidates.csv, pareto.html, pareto.png and metrics_grid.png; returns what was written.

    Without a finished candidate there is nothing to draw: only the two tables are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marked = mark_front(runs.frame, runs.sweep["directions"])
    front = front_members(runs)
    paths = [folder / "pareto.csv", folder / "candidates.csv"]
    for table, path in zip((front, marked), paths, strict=True):
        # A count beside a missing value is a float in the frame; `convert_dtypes` writes it as 20, not 20.0.
        table.convert_dtypes().to_csv(path)
    if front.empty:
        return paths
    drawn = with_teacher(runs, marked[(marked["status"] == "finished") & ~retrained(marked)])
    variants = choose(front, runs.sweep["teacher"])
    paths += [folder / "pareto.html", folder / "pareto.png", folder / "metrics_grid.png"]
    pareto_html(drawn, paths[2], sweep=runs.sweep, recipe=runs.params)
    pareto_png(drawn, paths[3], sweep=runs.sweep, variants=variants)
    metrics_grid_png(drawn, paths[4], sweep=runs.sweep, variants=variants)
    return paths


def _float(value: Any) -> float:
    return float(value) if value is not None else np.nan


def _text(value: Any, spec: str) -> str:
    return format(_float(value), spec) if np.isfinite(_float(value)) else "-"
