"""How pages, pictures and terminal put a candidate and its numbers into words."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

MB = 1e6
"""Bytes in a megabyte, which is decimal everywhere."""


def trial_label(row: "pd.Series[Any] | Mapping[str, Any]") -> str:
    """`teacher` or `trial 12`; `night 12` where several sweeps are shown together."""
    if row["stage"] == "teacher":
        return "teacher"
    label = row.get("label")
    return label if isinstance(label, str) else f"trial {int(row['trial_number'])}"


def kinds_of(candidates: pd.DataFrame) -> pd.Series:
    """What kind of candidate each row is, of network, way of pruning and precision those that differ: a marker each."""
    known = [name for name in ("student_model", "pruning_method", "precision") if name in candidates.columns]
    if not known:
        return pd.Series("candidates", index=candidates.index)
    words = candidates[known].fillna({name: "not pruned" if name == "pruning_method" else "" for name in known})
    if "student_model" in known:  # the uncut teacher has a marker of its own
        words["student_model"] = words["student_model"].replace("teacher", "copy of the teacher")
    varied = [name for name in known if words[name].nunique() > 1]
    shown = varied or [name for name in known if name == "pruning_method"] or known[:1]
    return words[shown].astype(str).agg(", ".join, axis=1)


def merged_names(variants: Mapping[str, str]) -> dict[str, str]:
    """Run id -> all its names, so that a candidate with several names is shown once.

    Example:
        >>> merged_names({"most_accurate": "r1", "fastest": "r2", "smallest": "r2"})
        {'r1': 'most accurate', 'r2': 'fastest, smallest'}
    """
    merged: dict[str, str] = {}
    for name, run_id in variants.items():
        words = name.replace("_", " ")
        merged[run_id] = f"{merged[run_id]}, {words}" if run_id in merged else words
    return merged


def plain_number(value: Any) -> str:
    """`20` for 20.0, `0.0003` for 3e-4; other values as Python prints them."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def pruning_of(row: "pd.Series[Any]") -> str:
    """`structured 0.3`; a dash for a ratio that was not recorded, `uncut` for 0."""
    ratio = row.get("pruning_ratio")
    if ratio == 0:
        return "uncut"
    return f"{row.get('pruning_method')} {'-' if ratio is None or pd.isna(ratio) else f'{float(ratio):g}'}"


def in_words(row: "pd.Series[Any]") -> str:
    """A candidate on one line: every number with its unit, split and n."""
    parts = [f"{trial_label(row)}:", f"val {100 * row['val_accuracy']:.2f} %{_count(row, 'num_val')}"]
    if pd.notna(row.get("test_accuracy")):
        parts.append(f"test {100 * row['test_accuracy']:.2f} %{_count(row, 'num_test')}")
    parts.append(f"p50 {row['latency_p50_ms']:#.3g} ms")
    if pd.notna(row.get("latency_p90_ms")):
        parts.append(f"p90 {row['latency_p90_ms']:#.3g} ms")
    return "  ".join([*parts, f"{row['size_bytes'] / MB:#.3g} MB"])


def differences(row: "pd.Series[Any]", other: "pd.Series[Any]") -> str:
    """What `row` costs and saves compared with `other`.

    Example:
        >>> best = pd.Series({"val_accuracy": 0.93, "latency_p50_ms": 2.0, "size_bytes": 4e6})
        >>> differences(pd.Series({"val_accuracy": 0.928, "latency_p50_ms": 2.2, "size_bytes": 3e6}), best)
        '0.20 points less accurate, 10 % slower, 25 % smaller'
    """
    points = 100 * (row["val_accuracy"] - other["val_accuracy"])
    said = [f"{abs(points):.2f} points {'more' if points > 0 else 'less'} accurate" if points else "as accurate"]
    for column, less, more in (("latency_p50_ms", "faster", "slower"), ("size_bytes", "smaller", "larger")):
        change = 100 * (row[column] / other[column] - 1)
        if abs(change) >= 0.5:  # less would be printed as 0 %
            said.append(f"{abs(change):.0f} % {less if change < 0 else more}")
    return ", ".join(said)


def _count(row: "pd.Series[Any]", name: str) -> str:
    return f" (n = {int(row[name]):,})" if pd.notna(row.get(name)) else ""


def of_teacher(row: "pd.Series[Any]") -> str:
    """A latency's share of the teacher's with its 95 % interval, in brackets; empty if it was not measured so."""
    ratio, half_width = row.get("latency_vs_teacher"), row.get("latency_vs_teacher_half_width")
    if pd.isna(ratio) or pd.isna(half_width):
        return ""
    return f" ({ratio:.3f} ± {ratio * half_width:.3f} of the teacher's)"
