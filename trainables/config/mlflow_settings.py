"""How often and how long MLflow's client asks a server, for writing and for reading; the only place that says so.

MLflow takes this from environment variables, at every request. They are set around our calls alone: set for the whole
process, the value would be that of whichever module was imported first.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

QUIET = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a bar for one small file would tear a live table apart
}
# One call to a dead server costs 246 s with MLflow's defaults (7 retries with back-off).
WRITING = {
    # No retry: after a lost answer it would make a second run, where our own next attempt looks for the first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    **QUIET,
}
READING = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", **QUIET}


@contextmanager
def mlflow_settings(purpose: Mapping[str, str]) -> Iterator[None]:
    """Within: MLflow as `WRITING` or `READING` have it; a variable that the user has set stays as it is."""
    ours = {name: value for name, value in purpose.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
