"""What MLflow's list of runs shows of a sweep: columns worth having, the front first, and two charts.

How MLflow's pages keep a view, and name it in an address, is documented nowhere: it is as their Share button writes it,
all of it stands here, and pyproject.toml bounds MLflow's version because of it (tests/contracts/test_private_parts.py).
"""

import json
from collections.abc import Mapping
from urllib.parse import quote

from analysis.reading.runs import Runs

# Few, because MLflow sorts them by name, and accuracy must not be beyond the edge of a screen.
METRICS = ("latency_p50_ms", "size_bytes", "val_accuracy")
PARAMS = ("student_model", "pruning_ratio", "precision", "temperature", "alpha", "kd_loss", "learning_rate")
TAGS = ("pareto", "status", "control")
VIEW_TAG = "mlflow.sharedViewState."
"""Tag of an experiment that holds a view; the view's name follows."""
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""Else the pages of an experiment open on prompts and traces, which a sweep has none of."""
VIEW_FIELD = "viewStateShareKey"
"""Field of an address that names the view."""
CHARTS_FIELD = "compareRunsMode=CHART"
"""Field of an address that opens the charts of the runs."""
SECTION = "front"
CHARTED = 10_000  # runs


def view_tags(sweep: str) -> dict[str, str]:
    """Tags of the experiment that keep the view of a sweep's trials."""
    return {f"{VIEW_TAG}{sweep}": json.dumps(view_of(sweep)), KIND_TAG: KIND}


def view_of(sweep: str) -> Mapping[str, object]:
    """The state of MLflow's run list: one sweep's trials, the most accurate first, these columns and no others.

    The front alone: add `and tags.pareto = "true"` to the filter.
    """
    columns = [f"metrics.`{name}`" for name in METRICS]
    columns += [f"params.`{name}`" for name in PARAMS] + [f"tags.`{name}`" for name in TAGS]
    name = sweep.replace('"', "")
    return {
        "searchFilter": f'tags.kind = "trial" and tags.sweep = "{name}"',
        "orderByKey": "metrics.`val_accuracy`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsHiddenMode": "SHOWALL",  # charts of the first ten runs, else
        "compareRunSections": [
            {
                "uuid": SECTION,
                "name": "Accuracy",
                "columns": 2,
                "cardHeight": 480,
                "display": True,
                "isGenerated": False,
            }
        ],
        "compareRunCharts": [_scatter(cost, "val_accuracy") for cost in ("latency_p50_ms", "size_bytes")],
    }


def _scatter(across: str, up: str) -> Mapping[str, object]:
    """A chart of two metrics, a point a run."""
    return {
        "type": "SCATTER",
        "uuid": f"{SECTION}-{across}",
        "metricSectionId": SECTION,
        "isGenerated": False,
        "deleted": False,
        "xaxis": {"key": across, "type": "METRIC"},
        "yaxis": {"key": up, "type": "METRIC"},
        "runsCountToCompare": CHARTED,
    }


def addresses(runs: Runs) -> dict[str, str]:
    """Where a browser finds a sweep: its own run, with the verdict and its files, and the view of its trials."""
    experiment = runs.frame["experiment_id"].iloc[0] if len(runs.frame) else "0"
    place = f"{runs.url}/#/experiments/{experiment}/runs"
    own = {"the sweep": f"{place}/{runs.parent_ids[0]}"} if runs.parent_ids else {}
    view = f"{place}?{VIEW_FIELD}={quote(runs.name)}"
    return own | {"its trials": view, "charts": f"{view}&{CHARTS_FIELD}"}
