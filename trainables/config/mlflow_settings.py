"""Retries and timeouts of MLflow's client; no telemetry; the compiler's cache. Set nowhere else.

MLflow reads the former from environment variables at every request. They are set only around our own calls: if they
were set for the whole process, the module imported first would decide their values. Telemetry is decided when MLflow
and ONNX Runtime are imported: commands import this module before them, and other processes inherit it.

Inductor runs the code that it finds in its cache, by default in a folder below /tmp that anybody may have made.
It decides on the folder when torchvision is imported.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "ORT_DISABLE_TELEMETRY": "1"}
for _name, _value in NO_TELEMETRY.items():
    os.environ.setdefault(_name, _value)
with suppress(RuntimeError):  # a user without a home
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "torchinductor"))

QUIET = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a bar for one small file would tear a live table apart
}
# One call to a dead server costs 246 s with MLflow's defaults (7 retries with back-off).
WRITING = {
    # No retries: after a lost answer they would create a second run, whereas our next delivery looks for the first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    **QUIET,
}
READING = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", **QUIET}


@contextmanager
def mlflow_settings(purpose: Mapping[str, str]) -> Iterator[None]:
    """Apply `WRITING` or `READING` within the block; variables that the user has set stay as they are."""
    ours = {name: value for name, value in purpose.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
