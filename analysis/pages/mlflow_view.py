"""How MLflow's own pages show a sweep: the columns of its list of runs, and the addresses."""

from collections.abc import Mapping
from urllib.parse import quote

from analysis.reading.runs import Runs

# The columns shown: those by which a person chooses; all others are a click away.
METRICS = ("val_accuracy", "test_accuracy", "latency_p50_ms", "latency_p90_ms", "size_bytes", "score", "reused_time_s")
PARAMS = ("temperature", "alpha", "kd_loss", "pruning_method", "pruning_ratio", "learning_rate")
TAGS = ("pareto", "status", "control")


def view_of(sweep: str) -> Mapping[str, object]:
    """The state of MLflow's run list that shows one sweep's trials, the most accurate first, in the columns above.

    To see the front alone, add `and tags.pareto = "true"` to the filter.
    """
    columns = [f"metrics.`{name}`" for name in METRICS]
    columns += [f"params.`{name}`" for name in PARAMS] + [f"tags.`{name}`" for name in TAGS]
    name = sweep.replace('"', "")  # MLflow's filter language has no escape for a quotation mark
    return {
        "searchFilter": f'tags.kind = "trial" and tags.sweep = "{name}"',
        "orderByKey": "metrics.`val_accuracy`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
    }


def addresses(runs: Runs) -> dict[str, str]:
    """The addresses of a sweep for a browser: its own run, with verdict and files, and the list of its trials."""
    experiment = runs.frame["experiment_id"].iloc[0] if len(runs.frame) else "0"
    place = f"{runs.url}/#/experiments/{experiment}/runs"
    own = {"the sweep": f"{place}/{runs.parent_ids[0]}"} if runs.parent_ids else {}
    return own | {"its trials": f"{place}?viewStateShareKey={quote(runs.name)}"}
