"""The table of runtimes: one row per measured cell, with a diagnosis where a cell disappoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.pages.markdown import frame_table
from analysis.reading.doors import write_csv
from analysis.reading.wording import MB
from trainables.files import write_text
from trainables.layout import recorded
from trainables.records.trial import TrialRecord, read_trial

# Column of the frame -> heading in Markdown.
COLUMNS = {
    "model": "model",
    "runtime": "runtime",
    "precision": "precision",
    "batch_images": "batch",
    "latency_device": "device",
    "test_accuracy": "test acc. %",
    "latency_p50_ms": "p50 ms",
    "latency_p90_ms": "p90 ms",
    "latency_p99_ms": "p99 ms",
    "energy_per_image_mj": "mJ/image",
    "throughput_ips": "images/s",
    "speedup": "x eager",
    "file_bytes": "MB",
    "zstd_bytes": "zstd MB",
    "parity_max_abs": "max abs dlogit",
    "parity_agreement": "same top-1 %",
    "diagnosis": "diagnosis",
}
FORMATS = {
    "test_accuracy": lambda value: f"{100 * value:.2f}",
    "parity_agreement": lambda value: f"{100 * value:.2f}",
    "file_bytes": lambda value: f"{value / MB:.2f}",
    "zstd_bytes": lambda value: f"{value / MB:.2f}",
    "throughput_ips": lambda value: f"{value:.0f}",
    "speedup": lambda value: f"{value:.2f}",
    "parity_max_abs": lambda value: f"{value:.1e}",
    "batch_images": lambda value: f"{value:.0f}",
}
# Columns that identify cells that were not measured, besides their batches.
ABSENT = ("model", "runtime", "precision")
# Tags of a cell's record that the diagnosis needs, besides those of its latency.
TAGS = ("pruning", "vnni")
# Columns that are equal in two cells which differ in precision or batch alone.
CELL = ["model", "runtime", "batch_images", "runtime_threads"]
# If eight images take less than this many times as long as one, the GPU waits for kernels to be launched.
LAUNCH_BOUND = 1.5
# A precision is called slower from this multiple of FP32's latency on: two clean measurements may differ by 4 %.
SLOWER = 1.05
# Accuracy points under FP32 from which a precision is said to have cost accuracy.
LOSS_POINTS = 0.5


def runtime_frame(folder: Path) -> pd.DataFrame:
    """All cells measured in OUT/sweeps/NAME/runtimes with their diagnoses, ordered by model."""
    records = [read_trial(cell) for cell in recorded(folder)]
    if not records:
        return pd.DataFrame(columns=[*COLUMNS, "status", "reason"])
    frame = pd.DataFrame([_row(record) for record in records])
    frame["diagnosis"] = [_diagnosis({str(k): v for k, v in row.items()}, frame) for row in frame.to_dict("records")]
    order = ["of_trial", "runtime", "precision", "runtime_threads", "batch_images"]
    return frame.sort_values(order, ignore_index=True)


def _row(record: TrialRecord) -> dict[str, Any]:
    tags = {name: value for name, value in record.tags.items() if name.startswith("latency_") or name in TAGS}
    return {**record.params, **record.metrics, **tags, "status": record.status, "reason": record.reason}


def _diagnosis(row: Mapping[str, Any], frame: pd.DataFrame) -> str:
    """What to know about a cell before choosing it; empty if nothing is remarkable."""
    if row["status"] != "finished":
        return f"{'absent' if row['status'] == 'infeasible' else row['status']}: {row['reason']}"
    notes = [_against_fp32(row, frame), _launch_bound(row, frame), _eager(row), _masked(row)]
    verdict = row.get("latency_verdict", "clean")
    return "; ".join(note for note in [*notes, verdict if verdict != "clean" else ""] if note)


def _against_fp32(row: Mapping[str, Any], frame: pd.DataFrame) -> str:
    """What a lower precision costs beside FP32 in the same runtime, batch and thread count."""
    plain = _cell(frame, row, precision="fp32", batch_images=row["batch_images"])
    if row["precision"] == "fp32" or plain is None:
        return ""
    notes = []
    slower = row["latency_p50_ms"] / plain["latency_p50_ms"]
    if slower > SLOWER:
        why = {
            "int8": "operators without an INT8 kernel (hard-swish, squeeze-and-excite) quantise and dequantise around "
            f"themselves{_integers(row)}",
            "fp16": "this device computes FP16 no faster, and converts",
        }[str(row["precision"]).partition("_")[0]]
        notes.append(f"{slower:.2f} x as slow as FP32: {why}")
    lost = 100 * (plain["test_accuracy"] - row["test_accuracy"])
    if lost > LOSS_POINTS:
        notes.append(f"{lost:.1f} points less accurate than FP32")
    return "; ".join(notes)


def _integers(row: Mapping[str, Any]) -> str:
    slow = row.get("vnni") == "no" and not str(row["latency_device"]).startswith("cuda")
    return ", and this CPU has no instructions for INT8 (VNNI)" if slow else ""


def _launch_bound(row: Mapping[str, Any], frame: pd.DataFrame) -> str:
    replayed = row["runtime"] == "cuda_graph"  # one launch, whatever the network
    if row["batch_images"] != 1 or replayed or not str(row["latency_device"]).startswith("cuda"):
        return ""
    eight = _cell(frame, row, precision=row["precision"], batch_images=8)
    if eight is None or eight["latency_p50_ms"] > LAUNCH_BOUND * row["latency_p50_ms"]:
        return ""
    times = eight["latency_p50_ms"] / row["latency_p50_ms"]
    return f"launch-bound: 8 images take {times:.2f} x as long as 1; fewer layers help, fewer channels do not"


def _eager(row: Mapping[str, Any]) -> str:
    slow = row.get("speedup", 1.0) < 0.95 and not str(row["runtime"]).startswith("eager")
    return f"slower than eager PyTorch in FP32 ({row['speedup']:.2f} x)" if slow else ""


def _masked(row: Mapping[str, Any]) -> str:
    zeroes = row.get("pruning") not in (None, "", "structured")
    return "zeroed weights do not speed dense kernels up" if zeroes else ""


def _cell(frame: pd.DataFrame, row: Mapping[str, Any], **other: Any) -> Mapping[str, Any] | None:
    """The finished cell that differs from this one in the columns given; None if there is none."""
    wanted = {name: row[name] for name in CELL} | other
    found = frame[(frame["status"] == "finished") & (frame[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return None if found.empty else dict(found.iloc[0])


def write_runtime_table(frame: pd.DataFrame, folder: Path, *, heading: str) -> list[Path]:
    """Write `runtimes.csv` (all cells and columns) and `runtimes.md` (columns to compare, then the absent cells)."""
    folder.mkdir(parents=True, exist_ok=True)
    csv, markdown = folder / "runtimes.csv", folder / "runtimes.md"
    write_csv(frame, csv, index=False)
    absent = frame["status"] == "infeasible"
    lines = [f"# {heading}", "", _table(frame[~absent], list(COLUMNS)), "", NOTES]
    if absent.any():
        lines += ["", "## Absent", "", _table(_together(frame[absent]), [*ABSENT, "batch_images", "diagnosis"])]
    write_text(markdown, "\n".join(lines) + "\n")
    return [csv, markdown]


def _together(absent: pd.DataFrame) -> pd.DataFrame:
    """One row for all cells that differ in batch or threads alone and are absent for the same reason."""
    batches = absent.groupby([*ABSENT, "reason"], sort=False)["batch_images"]
    rows = batches.agg(lambda counts: ", ".join(f"{count:.0f}" for count in dict.fromkeys(counts))).reset_index()
    return rows.rename(columns={"reason": "diagnosis"})


def _table(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    return frame_table(frame, {name: COLUMNS[name] for name in columns if name in frame.columns}, _text)


NOTES = (
    "Accuracy and parity over the whole test split, each artifact in its own runtime; parity against the FP32 ONNX file"
    " in ONNX Runtime on the CPU, if the model was shipped as one. Times are of one call of `batch` images, in a"
    " fresh process that has the machine to itself; `x eager`: against FP32 in eager PyTorch on the same device,"
    " threads and batch, measured in alternation."
)


def _text(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    if name in FORMATS and not isinstance(value, str):
        return FORMATS[name](float(value))
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
