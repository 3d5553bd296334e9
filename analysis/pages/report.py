"""One page about a sweep: the verdict first, then all that it is based on; as Markdown and as one HTML file."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.findings.confidence import half_width_95
from analysis.findings.controls import controls
from analysis.findings.front import choose, competing, front_members, untrained, winners, with_teacher
from analysis.findings.importance import TARGETS, counted, hint, importance, share_text
from analysis.findings.reuse import reuse
from analysis.pages import ablation
from analysis.pages.front_files import write_controls, write_front
from analysis.pages.markdown import number, page, percent, safe, table
from analysis.pages.model_card import card
from analysis.reading.facts import dataset_of, device_of, first_known, stood_still
from analysis.reading.rows import finished_runs, row_of
from analysis.reading.runs import Runs
from analysis.reading.wording import MB, differences, merged_names, of_teacher, plain_number, trial_label
from trainables.files import copy_file, write_text


def write_report(runs: Runs, folder: Path, *, drawn: Sequence[Path] = ()) -> list[Path]:
    """Write report.md and report.html with the pictures and tables they show; the HTML file embeds its pictures.

    Args:
        runs: of the sweep.
        folder: for all files.
        drawn: files of `write_front` and `write_controls` for these runs, copied instead of drawn again.

    Raises:
        ValueError: if no candidate has finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = [copy_file(path, folder / path.name) for path in drawn]
    made = made or [*write_front(runs, folder), *write_controls(controls(runs.frame), folder)]
    by = _ablated(runs)
    made += ablation.write_ablation(runs, by, folder) if by else []
    text = markdown(runs, by)
    paths = [folder / "report.md", folder / "report.html"]
    write_text(paths[0], text)
    write_text(paths[1], page(text, f"Report of sweep {runs.name}", folder))
    return paths + made


def markdown(runs: Runs, by: Sequence[str] = ()) -> str:
    """The report as Markdown; texts from outside are escaped.

    Args:
        runs: of the sweep.
        by: the settings that an ablation varies; empty for a search.
    """
    front = front_members(runs)
    variants = choose(front, runs.sweep["teacher"])
    names = merged_names(variants)
    parts = [
        f"# {safe(dataset_of(runs.frame, runs.sweep))}: report of sweep {safe(runs.name)}",
        *_verdict(runs, front, variants),
        "## The front",
        "![accuracy against latency](pareto.png)",
        _front_table(runs, front, names),
        _doubt(runs),
        "![teacher and chosen variants](metrics_grid.png)",
        "![hypervolume over trials](hypervolume.png)",
        "## Which network won where",
        *_where(runs),
        "## What distillation and pruning were worth",
        *_worth(runs),
        "## Which setting moved what",
        *_settings(runs, by),
        "## What reuse saved",
        _saved(runs),
        "## How latency was measured",
        *_latency(runs),
        "![latency of the front](latency.png)",
        "## How to reproduce",
        *_reproduce(runs),
        *(part for run_id in names for part in ("## Model card: " + names[run_id], card(runs, run_id))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_of(runs: Runs, *, model: str) -> str:
    """The verdict and where to read on, for the top of MLflow's page of the sweep.

    Args:
        runs: of the sweep.
        model: name under which the sweep's files are registered in MLflow.
    """
    front = front_members(runs)
    verdict = "\n\n".join(_verdict(runs, front, choose(front, runs.sweep["teacher"])))
    return (
        f"{verdict}\n\nArtifacts: `pareto.html` (interactive), `report.html` (all of it on one page)."
        " In the list of runs"
        f' `tags.pareto = "true"` is the front, `tags.control` marks champions and controls,'
        f" `tags.status` tells how a trial ended. `models:/{safe(model)}@balanced` loads the balanced file."
    )


def _verdict(runs: Runs, front: pd.DataFrame, variants: Mapping[str, str]) -> Iterable[str]:
    teacher = with_teacher(runs, front).iloc[0]
    for name in dict.fromkeys(("balanced", "most_accurate")):
        row = row_of(front, variants[name])
        others = front.drop(index=variants[name])
        yield f"**{name.replace('_', ' ').capitalize()}**: {_sentence(row, teacher, runs)}" + _nearest(others, row)
        if variants["balanced"] == variants["most_accurate"]:
            break
    arms = controls(runs.frame)
    if len(arms):
        yield " ".join(safe(text) for text in arms["verdict"].dropna())


def _sentence(row: "pd.Series[Any]", teacher: "pd.Series[Any]", runs: Runs) -> str:
    """A candidate against the teacher in one sentence, on the test split where it was read."""
    split = "test" if pd.notna(row.get("test_accuracy")) else "val"
    accuracy, images = row[f"{split}_accuracy"], row.get(f"num_{split}")
    sure = ""
    if images is not None and pd.notna(images):
        sure = f" ± {100 * half_width_95(accuracy, images):.1f} (95 %, n = {int(images):,})"
    tail = f", p90 {row['latency_p90_ms']:#.3g} ms" if pd.notna(row.get("latency_p90_ms")) else ""
    below = 100 * (teacher[f"{split}_accuracy"] - accuracy)
    against = f"{abs(below):.2f} points {'under' if below >= 0 else 'over'} the teacher" if below == below else ""
    against = "level with the teacher" if abs(below) < 0.005 else against  # 0.00 points would be printed
    smaller = teacher["size_bytes"] / row["size_bytes"]
    return (
        f"{trial_label(row)} has {100 * accuracy:.2f} %{sure} on the {'test' if split == 'test' else 'validation'}"
        f" images, {against}; p50 {row['latency_p50_ms']:#.3g} ms{of_teacher(row)}{tail} on"
        f" {safe(device_of(runs.frame, runs.sweep))};"
        f" {row['size_bytes'] / MB:#.3g} MB, {smaller:.3g} times smaller than the teacher."
    )


def _nearest(others: pd.DataFrame, row: "pd.Series[Any]") -> str:
    """What another choice would change: the front member nearest in accuracy, compared with `row`."""
    if others.empty:
        return ""
    near = row_of(others, (others["val_accuracy"] - row["val_accuracy"]).abs().idxmin())
    return f" The nearest on the front, {trial_label(near)}: {differences(near, row)} (validation)."


def _front_table(runs: Runs, front: pd.DataFrame, names: Mapping[str, str]) -> str:
    rows: list[list[str]] = []
    energy = {"energy_per_image_mj": "mJ"} if "energy_per_image_mj" in runs.frame.columns else {}
    for run_id, row in with_teacher(runs, front).iterrows():
        doubt = "" if row["stage"] == "teacher" or row["may_be_optimal"] else " (ruled out)"
        recipe = [safe(f"{name} {plain_number(row[name])}") for name in _varied(runs) if pd.notna(row.get(name))]
        rows.append(
            [
                trial_label(row) + doubt,
                names.get(str(run_id), ""),
                percent(row.get("val_accuracy")),
                percent(row.get("test_accuracy")),
                *(number(row.get(name), "#.3g") for name in ("latency_p50_ms", "latency_p90_ms", *energy)),
                number(row["size_bytes"] / MB, "#.3g"),
                "" if row["stage"] == "teacher" else ", ".join(recipe),
            ]
        )
    return table(["", "chosen as", "val %", "test %", "p50 ms", "p90 ms", *energy.values(), "MB", "recipe"], rows)


def _where(runs: Runs) -> Iterable[str]:
    """The most accurate candidate within each share of the teacher's latency, with its network and precision."""
    found = winners(runs)
    if found.empty:
        yield "No candidate is as fast as the teacher, or its latency was not recorded."
        return
    rows = [
        [
            f"{share:.3g} x",
            trial_label(row),
            *(safe(row[name]) if pd.notna(row.get(name)) else "-" for name in ("student_model", "precision")),
            "no" if untrained(row) else "yes",
            percent(row["val_accuracy"]),
            percent(row.get("test_accuracy")),
            number(row["latency_p50_ms"], "#.3g"),
        ]
        for share, (_, row) in zip(found["share"], found.iterrows(), strict=True)
    ]
    yield "The most accurate candidate (validation) that takes at most this share of the teacher's latency."
    yield table(["latency", "", "student", "precision", "trained", "val %", "test %", "p50 ms"], rows)
    yield "`teacher`, not trained, is its own network in some precision: what every other candidate must beat."


def _doubt(runs: Runs) -> str:
    candidates = competing(runs)
    others = candidates[candidates["may_be_optimal"] & ~candidates["pareto"]]
    out = candidates[candidates["pareto"] & ~candidates["may_be_optimal"]]
    said = f"{len(others)} candidates beside the front may be as good: no other candidate is surely better (95 %)."
    if len(out):
        names = ", ".join(trial_label(row) for _, row in out.iterrows())
        said += (
            f" On the front by chance alone: {safe(names)}; another candidate is surely more accurate, no larger and"
            " not slower."
        )
    return said + " The band in the picture shows what resampled trials attain."


def _worth(runs: Runs) -> Iterable[str]:
    arms = controls(runs.frame)
    if arms.empty:
        yield "Not asked: `--champions 2 --seeds 3` on the sweep's command retrains champions beside control arms."
        return
    rows = [
        [
            "" if pd.isna(row["champion"]) else f"{row['champion']:.0f}",
            str(row["arm"]).replace("_", " "),
            str(row["n"]),
            *(percent(row[f"{split}_accuracy_{what}"]) for split in ("val", "test") for what in ("mean", "std")),
        ]
        for _, row in arms.iterrows()
    ]
    yield table(["trial", "arm", "n", "val % mean", "sd", "test % mean", "sd"], rows)
    yield "\n".join(f"- {safe(text)}" for text in arms["verdict"].dropna())


def _settings(runs: Runs, by: Sequence[str]) -> Iterable[str]:
    if by:
        yield "![ablation](ablation.png)"
        yield "Mean and standard deviation of every cell over its seeds are in `ablation.csv`."
    candidates = competing(runs)
    try:
        shares = importance(candidates, runs.params)
    except ValueError as error:  # too few trials or settings: the report has its other parts all the same
        yield safe(error)
        return
    rows = [[safe(name), *(share_text(value) for value in row)] for name, row in shares.iterrows()]
    yield table(["parameter", *(TARGETS[name] for name in shares.columns)], rows)
    count = len(candidates)
    yield f"Importances by fANOVA over {counted(count)}; each column adds up to 1{hint(count)}."


def _saved(runs: Runs) -> str:
    if not {"reused_time_s", "train_time_s"} <= set(runs.frame.columns):
        return "Not recorded."
    found = reuse(runs.frame)
    done = finished_runs(runs.frame)
    teacher = runs.frame.loc[runs.frame["stage"] == "teacher", "train_time_s"].sum()
    trained = float(done["train_time_s"].sum())
    return (
        f"{found.trials} of {found.of} trials took their student, or a part of its training, from the store:"
        f" {found.seconds:,.0f} s of training were not repeated. All {len(done)} finished runs, controls included,"
        f" shared one teacher ({teacher:,.0f} s) and hold {trained:,.0f} s of student training between them."
    )


def _latency(runs: Runs) -> Iterable[str]:
    done = competing(runs)
    threads = first_known("latency_threads", runs.frame, runs.sweep)
    said = (
        f"One image through the exported ONNX file on {safe(device_of(runs.frame, runs.sweep))}"
        f"{f', {int(threads)} thread' + 's' * (int(threads) > 1) if threads else ''}, provider"
        f" {safe(first_known('latency_provider', runs.frame, runs.sweep) or 'not recorded')},"
        " in alternation with the teacher's file, while no trial uses that machine."
    )
    if "latency_n" in done.columns:
        said += f" {done['latency_n'].min():,.0f} to {done['latency_n'].max():,.0f} timed runs per file."
    if (most := done.get("latency_pooled", pd.Series(dtype="float64")).max()) > 1:
        said += f" Files of one shape share one p50, pooled from up to {most:.0f} measurements."
    yield said
    beside = done.get("reference_latency_beside_p50_ms", pd.Series(dtype="float64")).dropna()
    if len(beside):
        yield (
            f"The teacher's p50 beside them ranged from {beside.min():#.3g} to {beside.max():#.3g} ms; no latency"
            " depends on that, and ratios to the teacher come from pairs of neighbouring blocks."
        )
    if still := stood_still(runs.frame, runs.busy_s):
        yield f"{still[0].upper()}{still[1:]}."
    if "latency_verdict" in done.columns:
        counts = done["latency_verdict"].fillna("not recorded").str.partition(":")[0].value_counts()
        yield "Measurements: " + ", ".join(f"{count} {safe(name)}" for name, count in counts.items()) + "."


def _reproduce(runs: Runs) -> Iterable[str]:
    for name, sweep in runs.sweeps.items():
        versions = ", ".join(f"{safe(key)} {safe(value)}" for key, value in (sweep.get("versions") or {}).items())
        commit = safe(sweep.get("commit") or "not recorded")
        yield f"Sweep {safe(name)}, commit {commit}; {versions or 'versions not recorded'}."
        if sweep.get("command"):
            # Nothing from outside may end the block.
            yield "```\n" + str(sweep["command"]).replace("```", "'''") + "\n```"
            yield "The command leaves out the folders of data and output; flags that it lacks had their defaults."
        config = sweep.get("config") or {}
        if config.get("space"):
            yield table(["searched", "space"], [[safe(key), safe(value)] for key, value in config["space"].items()])
        rest = {key: value for key, value in config.items() if key != "space"}
        yield "```json\n" + json.dumps(rest, indent=1).replace("```", "'''") + "\n```"


def _ablated(runs: Runs) -> list[str]:
    """The settings that an ablation varies besides the seed; empty for a search."""
    space = (runs.sweep.get("config") or {}).get("space") or {}
    return [name for name in space if name != "seed"] if "seed" in space else []


def _varied(runs: Runs) -> list[str]:
    candidates = competing(runs)
    return [name for name in runs.params if name in candidates.columns and candidates[name].nunique(dropna=False) > 1]
