"""The front as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from analysis.findings.pareto import latency_ratio
from analysis.reading.facts import MB, device_of, images_of, merged_names, trial_label

RULED_OUT = "~: here by chance; another one is surely more accurate, no larger, not slower"
"""What `analysis.findings.confidence` found; fits 80 columns."""


def front_table(frame: pd.DataFrame, *, variants: Mapping[str, str] | None = None) -> Table:
    """The rows given as a table, the teacher on top; ratios are against the teacher among them.

    Args:
        frame: front members and the teacher (`stage` = teacher), as `with_teacher` returns them.
        variants: name -> run id, as `choose` returns them, told in the caption.
    """
    names = merged_names(variants or {})
    teachers = frame["stage"] == "teacher"
    rows = pd.concat([frame[teachers], frame[~teachers]])
    possible = rows.get("may_be_optimal", pd.Series(True, index=rows.index)).fillna(True).astype(bool)
    ruled_out = ~possible & (rows["stage"] != "teacher")
    teacher: dict[Any, Any] = rows.iloc[0].to_dict() if teachers.any() else {}
    labels = {str(run_id): trial_label(row) for run_id, row in frame.iterrows()}
    chosen = [f"{name}: {labels[run_id]}" for run_id, name in names.items()]
    about = f"ms: p50 of one image, {device_of(rows, {})}; x: of the teacher's; T: temperature"
    counts = f"{images_of('val', rows, {})}; {images_of('test', rows, {})}"
    doubt = [RULED_OUT] * bool(ruled_out.any())
    caption = "\n".join([counts, about, *doubt, "; ".join(chosen)])
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, caption=caption, caption_justify="left")
    # Headers of two lines let the table fit a terminal of 80 columns.
    table.add_column("trial", no_wrap=True)
    for header in ("val\n%", "test\n%", "ms", "x", "MB", "x", "T", "alpha"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("pruning", no_wrap=True)
    speed = latency_ratio(rows, teacher) if teacher else pd.Series(np.nan, index=rows.index)
    for ratio, out, (_, row) in zip(speed, ruled_out, rows.iterrows(), strict=True):
        is_teacher = row["stage"] == "teacher"
        table.add_row(
            "teacher" if is_teacher else escape(trial_label(row).removeprefix("trial ")) + "~" * bool(out),
            _text(100 * _float(row.get("val_accuracy")), ".2f"),
            _text(100 * _float(row.get("test_accuracy")), ".2f"),
            _text(row.get("latency_p50_ms"), "#.3g"),
            "1.00" if is_teacher else _text(ratio, ".2f"),  # its file beside itself; what the clock said is noise
            _text(_float(row.get("size_bytes")) / MB, "#.3g"),
            _text(_float(row.get("size_bytes")) / _float(teacher.get("size_bytes")), ".2f"),
            "" if is_teacher else "-" if row.get("alpha") == 0 else _text(row.get("temperature"), "g"),
            "" if is_teacher else _text(row.get("alpha"), "g"),
            "" if is_teacher else escape(_recipe(row)),
            style="dim" if is_teacher else None,
        )
    return table


def _recipe(row: pd.Series) -> str:
    """`structured 0.3`, with the loss before it and the precision behind where they are not the usual ones."""
    usual = {"kd_loss": ("kd", "none"), "precision": ("fp32",)}
    loss, precision = (row.get(name, known[0]) for name, known in usual.items())
    words = [f"{row.get('pruning_method')} {_text(row.get('pruning_ratio'), 'g')}"]
    if loss not in usual["kd_loss"] and not pd.isna(loss):
        words.insert(0, str(loss))
    if precision not in usual["precision"] and not pd.isna(precision):
        words.append(str(precision))
    return ", ".join(words)


def _float(value: Any) -> float:
    return float(value) if value is not None else np.nan


def _text(value: Any, spec: str) -> str:
    return format(_float(value), spec) if np.isfinite(_float(value)) else "-"
