"""Tables for the terminal: the front, champions and controls, importances, disk usage."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from analysis.findings.controls import SPLITS
from analysis.findings.importance import EVALUATORS, TARGETS, counted, hint, share_text
from analysis.findings.pareto import latency_ratio
from analysis.reading.disk import Usage
from analysis.reading.facts import device_of, images_of
from analysis.reading.wording import MB, merged_names, pruning_of, trial_label

# What `analysis.findings.confidence` found, in fewer than 80 columns.
RULED_OUT = "~: here by chance; another one is surely more accurate, no larger, not slower"


def open_table(*, padding: Any = (0, 1, 0, 0), **texts: Any) -> Table:
    """An empty table without a frame; `texts` are rich's `title` and `caption`."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, padding=padding, caption_justify="left", **texts)


def front_table(frame: pd.DataFrame, *, variants: Mapping[str, str] | None = None) -> Table:
    """The rows given as a table, the teacher on top; ratios are relative to the teacher among them.

    Args:
        frame: front members and the teacher (`stage` = teacher), as `with_teacher` returns them.
        variants: name -> run id, as `choose` returns them, listed in the caption.
    """
    teachers = frame["stage"] == "teacher"
    rows = pd.concat([frame[teachers], frame[~teachers]])
    possible = rows.get("may_be_optimal", pd.Series(True, index=rows.index)).fillna(True).astype(bool)
    ruled_out = ~possible & (rows["stage"] != "teacher")
    teacher: dict[Any, Any] = rows.iloc[0].to_dict() if teachers.any() else {}
    # No padding, and headers of two lines: the table has to fit a terminal of 80 columns.
    table = open_table(padding=0, caption=_front_caption(rows, variants or {}, doubtful=bool(ruled_out.any())))
    table.add_column("trial", no_wrap=True)
    for header in ("val\n%", "test\n%", "ms", "x", "MB", "x", "T", "alpha"):
        table.add_column(header, justify="right", no_wrap=True)
    several = "student_model" in rows.columns and rows.loc[rows["stage"] != "teacher", "student_model"].nunique() > 1
    table.add_column("student, ratio" if several else "pruning", no_wrap=True)
    speed = latency_ratio(rows, teacher) if teacher else pd.Series(np.nan, index=rows.index)
    speed = rows.get("latency_vs_teacher", speed).fillna(speed)
    for ratio, out, (_, row) in zip(speed, ruled_out, rows.iterrows(), strict=True):
        is_teacher = row["stage"] == "teacher"
        table.add_row(
            "teacher" if is_teacher else trial_label(row).removeprefix("trial ") + "~" * bool(out),
            _text(100 * _float(row.get("val_accuracy")), ".2f"),
            _text(100 * _float(row.get("test_accuracy")), ".2f"),
            _text(row.get("latency_p50_ms"), "#.3g"),
            "1.00" if is_teacher else _text(ratio, ".2f"),  # its file beside itself; any other number would be noise
            _text(_float(row.get("size_bytes")) / MB, "#.3g"),
            _text(_float(row.get("size_bytes")) / _float(teacher.get("size_bytes")), ".2f"),
            *(("", "") if is_teacher else describe_lesson(row)),
            "" if is_teacher else describe_recipe(row, several=several),
            style="dim" if is_teacher else None,
        )
    return table


def print_controls(console: Console, table: pd.DataFrame) -> None:
    """Print the arms as a table, then a sentence per comparison; nothing if there are no arms.

    Args:
        console: to print on.
        table: as `analysis.findings.controls.controls` returns it.
    """
    if table.empty:
        return
    shown = open_table(title="Champions and controls")
    for header in ("trial", "arm"):
        shown.add_column(header, no_wrap=True)
    for header in ("n", "val %\nmean", "sd", "test %\nmean", "sd"):
        shown.add_column(header, justify="right", no_wrap=True)
    for _, row in table.iterrows():
        trial = "" if pd.isna(row["champion"]) else f"{row['champion']:.0f}"
        shares = [row[f"{split}_{what}"] for split in SPLITS for what in ("mean", "std")]
        numbers = ["-" if pd.isna(share) else f"{100 * share:.2f}" for share in shares]
        shown.add_row(trial, row["arm"].replace("_", " "), str(row["n"]), *numbers)
    console.print(shown)
    for _, row in table[table["verdict"].notna()].iterrows():
        console.print(f"Trial {row['champion']:.0f}: {row['verdict']}")


def importance_table(table: pd.DataFrame, *, trials: int, evaluator: str) -> Table:
    """Importances as a table.

    Args:
        table: as `analysis.findings.importance.importance` returns it.
        trials: finished trials of the sweep.
        evaluator: one of `EVALUATORS`.
    """
    caption = f"{EVALUATORS[evaluator]} over {counted(trials)}; each column adds up to 1{hint(trials)}"
    shown = open_table(caption=caption)
    shown.add_column("parameter", no_wrap=True)
    for target in table.columns:
        shown.add_column(TARGETS[target], justify="right", no_wrap=True)
    for name, row in table.iterrows():
        shown.add_row(str(name), *(share_text(value) for value in row))
    return shown


def usage_table(rows: Sequence[Usage]) -> Table:
    """Disk usage as a table, one row per part of the folder."""
    table = open_table(caption="MB: 1,000,000 bytes; alone: what deleting this part alone would free")
    table.add_column("part")
    for heading in ("MB", "alone", "files"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.place, f"{row.bytes / MB:,.1f}", f"{row.own_bytes / MB:,.1f}", f"{row.files:,}")
    return table


def _front_caption(rows: pd.DataFrame, variants: Mapping[str, str], *, doubtful: bool) -> str:
    labels = {str(run_id): trial_label(row) for run_id, row in rows.iterrows()}
    chosen = [f"{name}: {labels[run_id]}" for run_id, name in merged_names(variants).items()]
    lines = [
        f"{images_of('val', rows, {})}; {images_of('test', rows, {})}",
        f"ms: p50 of one image, {device_of(rows, {})}; x: of the teacher's; T: temperature",
        *([RULED_OUT] if doubtful else []),
        "; ".join(chosen),
    ]
    return "\n".join(lines)


def describe_lesson(row: pd.Series) -> tuple[str, str]:
    """Temperature and alpha; a dash where nothing is trained, and for a temperature where nobody teaches."""
    if row.get("train_time_s") == 0:
        return "-", "-"
    return "-" if row.get("alpha") == 0 else _text(row.get("temperature"), ".3g"), _text(row.get("alpha"), ".3g")


def describe_recipe(row: pd.Series, *, several: bool = False) -> str:
    """`structured 0.3`, or `resnet20 0.3` among several students; an unusual loss before it, precision behind it."""
    usual = {"kd_loss": ("kd", "none"), "precision": ("fp32",)}
    loss, precision = (row.get(name, known[0]) for name, known in usual.items())
    pruned, student = pruning_of(row), str(row.get("student_model")).rpartition(":")[2]
    # the usual method goes without saying, so that the table fits a terminal of 80 columns
    words = [f"{student} {pruned.removeprefix('structured ')}" if several else pruned]
    if loss not in usual["kd_loss"] and not pd.isna(loss):
        words.insert(0, str(loss))
    if precision not in usual["precision"] and not pd.isna(precision):
        words.append(str(precision))
    return ", ".join(words)


def _float(value: Any) -> float:
    return float(value) if value is not None else np.nan


def _text(value: Any, spec: str) -> str:
    return format(_float(value), spec) if np.isfinite(_float(value)) else "-"
