"""A model card: what is known about one file, on half a page of Markdown."""

import shlex
from typing import Any

import pandas as pd

from analysis.findings.front import with_teacher
from analysis.pages.markdown import safe, table
from analysis.reading.facts import dataset_of, device_of
from analysis.reading.runs import Runs
from analysis.reading.wording import in_words, plain_number
from trainables.config.flags import flag_name

CARD_PARAMS = ("teacher_model", "student_model", "kd_loss", "temperature", "alpha", "learning_rate", "pruning_method")
COSTS = (("num_params", "parameters"), ("num_nonzero_params", "not zero"), ("macs", "multiply-accumulates"))


def model_card(runs: Runs, run_id: str, which: str) -> str:
    """The card of one run, as a Markdown file of its own."""
    return f"# {safe(runs.name)}@{safe(which)}\n\n{card(runs, run_id)}\n"


def card(runs: Runs, run_id: str) -> str:
    """The card of one run, without a headline."""
    row = with_teacher(runs, runs.frame[runs.frame.index == run_id]).iloc[-1]
    facts = [
        ["task", f"classifies images of {safe(dataset_of(runs.frame, runs.sweep))}"],
        ["numbers", safe(in_words(row))],
        ["latency on", safe(device_of(pd.DataFrame([row]), runs.sweep))],
        ["run", f"{safe(runs.url)}/#/experiments/{safe(row.get('experiment_id', 0))}/runs/{safe(run_id)}"],
    ]
    for name, label in COSTS:
        if pd.notna(row.get(name)):
            facts.append([label, f"{row[name]:,.0f}"])
    facts += [[name, safe(row[name])] for name in (*CARD_PARAMS, "pruning_ratio") if pd.notna(row.get(name))]
    if pd.notna(row.get("kept_in_float")):
        facts.append(["layers kept in float", safe(row["kept_in_float"].replace(",", ", "))])
    limits = (
        "Chosen by the validation split; the test split was read once. Nothing is known about other images, cameras or"
        " classes, and the latency holds for that device alone."
    )
    flags = _flags(runs, row)
    where = ", where `folder:NAME` stands for wherever that folder is" if "folder:" in flags else ""
    again = f"\n\nMade again by{where}\n\n```\npython -m trainables.stages.candidate {flags}\n```" if flags else ""
    return table(["", ""], facts) + f"\n\n{limits}{again}"


def _flags(runs: Runs, row: "pd.Series[Any]") -> str:
    """The flags of the candidate command that repeats a row; a data folder's path is not recorded, only its name."""
    values = {
        name: row[name]
        for name in runs.params
        if name in row.index and row[name] is not None and row[name] == row[name]
    }
    words = []
    for name, value in values.items():
        flag = flag_name(name)
        # As text: a column that holds truth values and others keeps what MLflow stores.
        if str(value) in ("True", "False"):
            words.append(flag if str(value) == "True" else f"--no-{flag.removeprefix('--')}")
        elif str(value) != "None":
            words.append(f"{flag} {shlex.quote(plain_number(value))}")
    return " ".join(words).replace("```", "")  # nothing may end the Markdown block that the command stands in
