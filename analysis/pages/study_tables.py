"""The tables of two reference studies, filled with what MLflow holds of a sweep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.pages.markdown import frame_table
from analysis.plots.front import DPI, GREY, OKABE_ITO, head, save
from analysis.reading.doors import write_csv
from analysis.reading.rows import finished_runs
from analysis.reading.runs import Runs
from analysis.reading.wording import MB
from trainables.config.flags import flag_name
from trainables.config.training import TRAIN_PRECISIONS
from trainables.files import write_text

# FP32's bytes per parameter: papers print that size, which is not the size of the file.
BYTES_A_PARAM = 4
VERDICT_NOTE = "Verdict: of the timing; do not compare rows closely that are not clean."
# The stage whose epochs the table of training precisions compares.
CURVE = "student"


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """A table with its heading, its notes and the names of its files."""

    heading: str
    notes: str
    """What the columns mean and how they were measured."""
    frame: pd.DataFrame
    """One row per variant; the first column names it, headings carry units."""
    bars: tuple[str, ...]
    """Columns to draw, one panel each."""
    file: str
    """Name of the CSV and Markdown files, without suffix."""
    picture: str
    """Name of the PNG and SVG files, without suffix."""


def inference_table(cells: pd.DataFrame, original: str, exported: str) -> StudyTable:
    """Inference time over the test set: the network in PyTorch against an exported file.

    Args:
        cells: of one model, precision, batch and thread count, as `analysis.reading.runs.read_cells` returns them.
        original: runtime of the first row, such as `eager_cpu`.
        exported: runtime of the second row, such as `onnxruntime_cpu`.

    Raises:
        ValueError: if one of the two runtimes was not measured.
    """
    rows = []
    for runtime, variant in ((original, "original (eager PyTorch)"), (exported, f"exported ({exported})")):
        found = cells[cells["runtime"] == runtime]
        done = found[found["status"] == "finished"]
        if done.empty:
            reason = "; ".join(sorted(set(found["reason"].astype(str))))
            raise ValueError(f"{runtime} has no numbers: {reason or 'it was not measured'}.")
        rows.append({"Variant": variant, **_inference(done.iloc[0])})
    frame = pd.DataFrame(rows)
    whole = frame["Test set s"]
    frame["Improvement %"] = 100 * (1 - whole / whole.iloc[0])
    name, batch = exported.partition("_")[0], int(done["batch_images"].iloc[0])
    return StudyTable(
        heading=f"{done['model'].iloc[0]}: {exported} against eager PyTorch",
        notes=f"Test set s: {int(done['num_test'].iloc[0])} test images at CallMs, the p50 of a call of {batch} images,"
        f" FP32, {int(done['runtime_threads'].iloc[0])} CPU thread, without decoding. Acc: on the test set."
        f" Improvement: time saved against the original. {VERDICT_NOTE}",
        frame=frame,
        bars=("Acc %", "CallMs", "Test set s"),
        file=name,
        picture=name,
    )


def _inference(row: "pd.Series[Any]") -> dict[str, Any]:
    return {
        "Runtime": row["runtime"],
        "Batch": int(row["batch_images"]),
        "Acc %": 100 * row["test_accuracy"],
        "CallMs": row["latency_p50_ms"],
        "Test set s": row["num_test"] / row["throughput_ips"],
        "Device": row["latency_device"],
        "Verdict": _verdict(pd.Series([row.get("latency_verdict")])),
    }


def _verdict(verdicts: "pd.Series[Any]") -> str:
    """`clean`, or how many of a row's measurements were not, and why."""
    kinds = verdicts.astype(object).fillna("not recorded").str.partition(":")[0]
    doubtful = kinds[kinds != "clean"]
    return "clean" if doubtful.empty else f"{len(doubtful)} of {len(kinds)} {'/'.join(sorted(set(doubtful)))}"


def precision_table(runs: Runs, curves: pd.DataFrame) -> StudyTable:
    """Training in FP32 against AMP: the best values of the curves, and times.

    Args:
        runs: a sweep whose trials differ in `train_precision` and `seed`.
        curves: their histories, as `analysis.reading.runs.read_curves` returns them.

    Raises:
        ValueError: if no trial of one of the two precisions has finished, or a trial trained for no epoch.
    """
    done = _candidates(runs)
    if done["student_epochs"].astype(int).min() < 1:
        raise ValueError(f"{flag_name('student_epochs')} 0 leaves no curve to compare; take 1 or more.")
    for name in TRAIN_PRECISIONS:
        if name not in set(done["train_precision"]):
            raise ValueError(f"no trial trained in {name} has finished; see why with `python -m analysis`.")
    rows = []
    for precision, group in done.groupby("train_precision", sort=False):
        of_runs = [_best(curves[curves["run_id"] == run_id]) for run_id in group.index]
        own = pd.DataFrame(of_runs, index=group.index).assign(
            train_s=group["train_time_s"],
            accuracy=100 * group["test_accuracy"],
            test_s=group["num_test"] / group["throughput_64_ips"],
        )
        mean = own.mean()
        rows.append(
            {
                "Training": {"fp32": "FP32", "amp": "AMP (bfloat16)"}.get(str(precision), str(precision)),
                "n": len(own),
                "Best train acc %": mean["train_accuracy"],
                "at epoch": mean["train_accuracy_epoch"],
                "Best val acc %": mean["val_accuracy"],
                "Best train loss": mean["train_loss"],
                "Best val loss": mean["val_loss"],
                "Train s": mean["train_s"],
                "Test acc %": mean["accuracy"],
                "Test s": mean["test_s"],
                "Device": group["latency_device"].iloc[0],
                "Verdict": _verdict(group["latency_verdict"]),
            }
        )
    return StudyTable(
        heading=f"{done['student_model'].iloc[0]}: training in FP32 against AMP",
        notes="Means over n training seeds. Train s: all epochs, beside other trials. Test: the exported FP32 file over"
        f" the test set in calls of 64 images, on Device. {VERDICT_NOTE}",
        frame=pd.DataFrame(rows),
        bars=("Test acc %", "Train s", "Best val loss"),
        file="amp",
        picture="amp",
    )


def _best(curve: pd.DataFrame) -> dict[str, float]:
    """The best value of each curve of one run, and its epoch; accuracies in percent."""
    found: dict[str, float] = {}
    for name in ("train_accuracy", "val_accuracy", "train_loss", "val_loss"):
        own = curve[curve["metric"] == f"{CURVE}_{name}"].sort_values("step")
        accuracy = name.endswith("accuracy")
        values = own["value"].to_numpy(dtype=float)
        at = int(values.argmax() if accuracy else values.argmin())
        found[name] = float(values[at]) * (100 if accuracy else 1)
        found[f"{name}_epoch"] = float(own["step"].iloc[at])
    return found


def distillation_table(runs: Runs) -> StudyTable:
    """Teacher, student trained from scratch, distilled student: accuracy, latency, share of the teacher's accuracy."""
    done, teacher = _candidates(runs), _teacher(runs)
    rows = [_variant(f"teacher ({done['teacher_model'].iloc[0]})", teacher)]
    model = done["student_model"].iloc[0]
    scratch = done["kd_loss"] == "none"
    for which, words in ((scratch, "from scratch"), (~scratch, "with distillation")):
        rows.append(_variant(f"student ({model}) {words}", done[which]))
    frame = pd.DataFrame(rows)
    frame.insert(3, "of the teacher's %", 100 * frame["Acc %"] / frame["Acc %"].iloc[0])
    return StudyTable(
        heading="Distillation against training from scratch",
        notes=_notes(done),
        frame=frame,
        bars=("Acc %", "LatencyMs", "FileMB"),
        file="distillation",
        picture="distillation",
    )


def pruning_table(runs: Runs) -> StudyTable:
    """Teacher, distilled student, and the distilled student pruned by each method and ratio of the sweep."""
    done, teacher = _candidates(runs), _teacher(runs)
    rows = [_variant(f"{done['teacher_model'].iloc[0]} (teacher)", teacher)]
    model = done["student_model"].iloc[0]
    dense = done["pruning_ratio"] == 0
    if dense.any():
        rows.append(_variant(f"{model} + KD", done[dense]))
    for (method, ratio), group in done[~dense].groupby(["pruning_method", "pruning_ratio"]):
        rows.append(_variant(f"{model} + KD + {method} {100 * float(str(ratio)):g} %", group))
    frame = pd.DataFrame(rows)
    gpu = str(frame["Device"].iloc[0]).startswith("cuda")
    return StudyTable(
        heading="Distilled and pruned, against the teacher",
        notes=f"{_notes(done)} Every student was trained for as many epochs, recovery included.",
        frame=frame,
        bars=("Acc %", "LatencyMs", "FileMB"),
        file="results_gpu_only" if gpu else "results_cpu",
        picture="metrics_grid",
    )


VARIANT_NOTES = (
    "Acc: test accuracy of the exported ONNX file, mean over n training seeds, sd their standard deviation. LatencyMs:"
    f" p50 of one image in {{runtime}}. SizeMB: {BYTES_A_PARAM} bytes per parameter, zeros too; FileMB: the file."
)


def _notes(done: pd.DataFrame) -> str:
    return f"{VARIANT_NOTES.format(runtime=done['latency_runtime'].iloc[0])} {VERDICT_NOTE}"


def _variant(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    """The row of one variant: means over its seeds."""
    if rows.empty:
        raise ValueError(f"the variant {name!r} has no finished trial; do not set what its table compares.")
    accuracy = 100 * rows["test_accuracy"]
    return {
        "Variant": name,
        "n": len(rows),
        "Acc %": accuracy.mean(),
        "sd": accuracy.std(ddof=1),
        "LatencyMs": rows["latency_p50_ms"].mean(),
        "SizeMB": BYTES_A_PARAM * rows["num_params"].mean() / MB,
        "FileMB": rows["size_bytes"].mean() / MB,
        "NonzeroParams": rows["num_nonzero_params"].mean(),
        "Device": rows["latency_device"].iloc[0],
        "Verdict": _verdict(rows["latency_verdict"]),
    }


def _candidates(runs: Runs) -> pd.DataFrame:
    done = finished_runs(runs.frame)
    if done.empty:
        raise ValueError(f"sweep {runs.name} has no finished trial; see why with `python -m analysis`.")
    return done


def _teacher(runs: Runs) -> pd.DataFrame:
    return runs.frame[runs.frame["stage"] == "teacher"]


def write_study(table: StudyTable, folder: Path, *, made_by: Sequence[str]) -> list[Path]:
    """Write a table as CSV (full digits), Markdown, PNG and SVG; returns the files.

    Args:
        table: to write.
        folder: made if it does not exist.
        made_by: the commands that repeat the study, for the Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    csv, markdown = folder / f"{table.file}.csv", folder / f"{table.file}.md"
    write_csv(table.frame, csv, index=False)
    cells = frame_table(table.frame, {name: name for name in table.frame.columns}, lambda _, value: _text(value))
    lines = [f"# {table.heading}", "", cells, "", table.notes, "", *(f"    {command}" for command in made_by)]
    write_text(markdown, "\n".join(lines) + "\n")
    return [csv, markdown, *bars_png(table, folder / f"{table.picture}.png")]


def _text(value: Any) -> str:
    """A cell's text: four digits of a number, nothing for a missing one."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"  # .4g would print 1.234e+04
    return str(value).replace("|", "/")


def bars_png(table: StudyTable, path: Path) -> list[Path]:
    """Draw a panel per column of `table.bars` with a bar per variant; writes a PNG and, beside it, an SVG."""
    frame = table.frame
    figure = Figure(figsize=(5.2 * len(table.bars) + 1.5, 2.2 + 0.75 * len(frame)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(table.bars), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, table.bars, strict=True):
        values = frame[name].to_numpy(dtype=float)
        axes.barh(range(len(frame)), values, color=OKABE_ITO[4], edgecolor=GREY, height=0.62)
        for at, value in enumerate(values):
            axes.text(value, at, f"  {_text(value)}", va="center", fontsize=15)
        most = float(np.nanmax(values))
        axes.set_xlim(0, 1.45 * most)
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1.05 * most])
        axes.set_title(name, fontsize=17)
        axes.tick_params(axis="x", labelsize=13)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(frame)), [_wrapped(str(name)) for name in frame.iloc[:, 0]], fontsize=15)
    panels[0].invert_yaxis()
    head(figure, table.heading, size=17)
    return save(figure, path)


def _wrapped(name: str) -> str:
    """A variant's name, on two or three lines if it is long."""
    return name.replace(" + ", "\n+ ", 1).replace(" (", "\n(", 1) if len(name) > 20 else name
