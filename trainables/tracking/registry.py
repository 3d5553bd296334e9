"""Front members as registered models of MLflow: the part of `tracking.tracker` that knows versions and aliases."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from trainables.layout import ONNX_FILE
from trainables.tracking.mlflow_model import write_mlflow_model
from trainables.tracking.run_fields import version_tags


def register(
    client: MlflowClient,
    model: str,
    members: Mapping[str, str],
    aliases: Mapping[str, str],
    *,
    sweep: str,
    sweep_id: str,
) -> str:
    """Register runs' ONNX files under one name, each once, and point the aliases at them: `Tracker.register`.

    Args:
        members: run ids, each with an artifact `model.onnx` -> what the version's page says of it.
        aliases: alias -> run id, all of them members.
        sweep_id: whose model it is: names of sweeps may repeat on a shared server.

    Returns:
        The name; with a suffix where another sweep has it.

    Raises:
        MlflowException: if the server is away or says no.
        ImportError: if no ONNX Runtime is installed.
        OSError: if a file is no ONNX file.
    """
    model = _own_model(client, model, sweep=sweep, sweep_id=sweep_id)
    versions = {
        run_id: _version(client, model, run_id) or _add_version(client, model, run_id, words)
        for run_id, words in members.items()
    }
    for alias, run_id in aliases.items():
        client.set_registered_model_alias(model, alias, versions[run_id])
    return model


def _own_model(client: MlflowClient, name: str, *, sweep: str, sweep_id: str) -> str:
    """The registered model of this name, made if there is none; another sweep's stays as it is, ours gets a suffix."""
    try:
        client.create_registered_model(name, tags={"sweep": sweep, "sweep_id": sweep_id})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if client.get_registered_model(name).tags.get("sweep_id", sweep_id) != sweep_id:
            return _own_model(client, f"{name}-{sweep_id[:6]}", sweep=sweep, sweep_id=sweep_id)
    return name


def _version(client: MlflowClient, model: str, run_id: str) -> str | None:
    """The version of a registered model that a run became, if it did."""
    found = client.search_model_versions(f"run_id = '{run_id}'")
    return next((str(version.version) for version in found if version.name == model), None)


def _add_version(client: MlflowClient, model: str, run_id: str, words: str) -> str:
    """Put a run's ONNX file on the run as an MLflow model, with signature and example; register it."""
    run = client.get_run(run_id)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(client.download_artifacts(run_id, ONNX_FILE, scratch))
        write_mlflow_model(source, Path(scratch) / "model")
        client.log_artifacts(run_id, str(Path(scratch) / "model"), "model")
    tags = {name: run.data.tags[name] for name in ("sweep", "key", "latency_device") if name in run.data.tags}
    made = client.create_model_version(
        model,
        source=f"{run.info.artifact_uri}/model",
        run_id=run_id,
        tags=tags | version_tags(run.data.metrics),
        description=words,
    )
    return str(made.version)
