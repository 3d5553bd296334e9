"""Register front members as MLflow models: the versions and aliases behind `Tracker.register`."""

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
    """Register the ONNX files of runs under one name, each once, and point the aliases at them.

    Args:
        members: run id, with an artifact `model.onnx` -> description on the version's page.
        aliases: alias -> run id; each must be a member.
        sweep_id: identifies the owner of the model, because sweep names may repeat on a shared server.

    Returns:
        The name; with a suffix if another sweep uses it.

    Raises:
        MlflowException: if the server is down or refuses.
        ImportError: if no ONNX Runtime is installed.
        OSError: if a file is not an ONNX file.
    """
    model = _claim_model(client, model, sweep=sweep, sweep_id=sweep_id)
    versions = {
        run_id: _version(client, model, run_id) or _add_version(client, model, run_id, words)
        for run_id, words in members.items()
    }
    for alias, run_id in aliases.items():
        client.set_registered_model_alias(model, alias, versions[run_id])
    return model


def _claim_model(client: MlflowClient, name: str, *, sweep: str, sweep_id: str) -> str:
    """Find or create the registered model of this name; if another sweep owns the name, ours gets a suffix."""
    # create first: to look first would race with a sweep that registers at the same time
    try:
        client.create_registered_model(name, tags={"sweep": sweep, "sweep_id": sweep_id})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if client.get_registered_model(name).tags.get("sweep_id", sweep_id) != sweep_id:
            return _claim_model(client, f"{name}-{sweep_id[:6]}", sweep=sweep, sweep_id=sweep_id)
    return name


def _version(client: MlflowClient, model: str, run_id: str) -> str | None:
    """The version of a registered model that was made from a run, if there is one."""
    found = client.search_model_versions(f"run_id = '{run_id}'")
    return next((str(version.version) for version in found if version.name == model), None)


def _add_version(client: MlflowClient, model: str, run_id: str, words: str) -> str:
    """Log a run's ONNX file as an MLflow model, with signature and example, and register it; return the version."""
    run = client.get_run(run_id)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(client.download_artifacts(run_id, ONNX_FILE, scratch))
        write_mlflow_model(source, Path(scratch) / "model")
        client.log_artifacts(run_id, str(Path(scratch) / "model"), "model")
    # copied from the run, so that the version's page can be read without opening the run
    tags = {name: run.data.tags[name] for name in ("sweep", "key", "latency_device") if name in run.data.tags}
    made = client.create_model_version(
        model,
        source=f"{run.info.artifact_uri}/model",
        run_id=run_id,
        tags=tags | version_tags(run.data.metrics),
        description=words,
    )
    return str(made.version)
