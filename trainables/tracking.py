"""The only MLflow writer: delivers what trials left in their folders, each exactly once.

Runs on the driver. Trials write records and files to disk (the outbox) and never talk to MLflow, so a tracking
server that is away costs nothing but a later delivery.
"""

import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainables.records import EpochRecord, TrialRecord, read_trial, to_json, write_text

# One call to a dead server costs 246 s with MLflow's defaults (7 retries with back-off).
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "1")

import mlflow
import mlflow.onnx
import numpy as np
import onnx
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

DELIVERED = "delivered.json"
RETRY_AFTER_S = 30.0
BATCH_METRICS = 900  # MLflow takes 1,000 metrics a call
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "infeasible": "KILLED", "failed": "FAILED"}


class TrackingError(Exception):
    """The MLflow store cannot be used; the message says why, on one line."""


class Tracker:
    """One sweep in MLflow: a parent run, and a child run for every delivered trial."""

    def __init__(self, uri: str, *, experiment: str, sweep: str, sweep_id: str, artifacts: Path) -> None:
        """Open the store and find or make experiment and parent run.

        Args:
            uri: tracking server or `sqlite:///PATH`.
            experiment: one for a task, such as `cifar10`.
            sweep: name of the parent run.
            sweep_id: unique; names may repeat on a shared server.
            artifacts: folder for the artifacts of a new experiment in a local store.

        Raises:
            TrackingError: if the store cannot be reached or used.
        """
        self._away_until = 0.0
        self._sweep = sweep
        local = not uri.startswith(("http://", "https://"))
        try:
            if uri.startswith("sqlite:///"):
                _write_ahead(Path(uri.removeprefix("sqlite:///")))
            self._client = mlflow.MlflowClient(uri)
            found = self._client.get_experiment_by_name(experiment)
            location = artifacts.resolve().as_uri() if local else None
            self.experiment_id = (
                found.experiment_id if found else self._client.create_experiment(experiment, artifact_location=location)
            )
            self.parent_id = self._find(f"tags.sweep_id = '{sweep_id}'") or self._create(
                sweep, {"kind": "sweep", "sweep": sweep, "sweep_id": sweep_id, "status": "running"}
            )
        except (MlflowException, sqlite3.Error, OSError) as error:
            raise TrackingError(str(error).splitlines()[0]) from error

    def deliver(self, folder: Path, scores: Mapping[str, float]) -> bool:
        """Bring one trial folder's record, curves and files to MLflow, unless that has been done.

        Args:
            folder: holds `record.json` and the files it names.
            scores: numbers that the driver adds to the trial's own.

        Returns:
            False if MLflow is away; the folder stays in the outbox and `deliver` may be called again.
        """
        if self._has(folder):
            return True
        if time.monotonic() < self._away_until:
            return False
        try:
            self._deliver(folder, read_trial(folder), scores)
        except (MlflowException, OSError):
            self._away_until = time.monotonic() + RETRY_AFTER_S
            return False
        return True

    def try_again(self) -> None:
        """Forget that MLflow was away a moment ago: the next delivery is tried at once."""
        self._away_until = 0.0

    def sweep_artifacts(self, paths: Iterable[Path]) -> None:
        """Put files on the parent run; like all that follows, raises `TrackingError` if MLflow is away."""
        with _told():
            for path in paths:
                self._client.log_artifact(self.parent_id, str(path))

    def sweep_metric(self, name: str, value: float, *, step: int) -> None:
        """A point of a curve on the parent run."""
        with _told():
            self._client.log_metric(self.parent_id, name, value, step=step)

    def mark_front(self, members: Collection[str], others: Collection[str]) -> None:
        """Tag runs, by id, with `pareto = true` or `false`."""
        with _told():
            for run_id in members:
                self._client.set_tag(run_id, "pareto", "true")
            for run_id in others:
                self._client.set_tag(run_id, "pareto", "false")

    def describe(self, text: str) -> None:
        """What MLflow's page of the sweep says on top, in Markdown."""
        with _told():
            self._client.set_tag(self.parent_id, "mlflow.note.content", text)

    def offer_view(self, name: str, view: Mapping[str, object]) -> None:
        """Keep a view of the run list, its columns, filter and order, under a name (`analysis.views.address`).

        MLflow's pages read it from a tag of the experiment, as their own Share button writes it.
        """
        with _told():
            self._client.set_experiment_tag(self.experiment_id, f"mlflow.sharedViewState.{name}", json.dumps(view))
            # Else the pages open on prompts and traces, which a sweep has none of.
            self._client.set_experiment_tag(self.experiment_id, "mlflow.experimentKind", "custom_model_development")

    def register(self, model: str, members: Mapping[str, str], aliases: Mapping[str, str]) -> None:
        """Register candidates under one name, each once however often this is called, and point the aliases at them.

        `models:/MODEL@balanced` then loads with `mlflow.onnx` and `mlflow.pyfunc`.

        Args:
            model: name of the registered model.
            members: run ids, each with an artifact `model.onnx` -> what the version's page says of it.
            aliases: alias -> run id, all of them members.
        """
        with _told():
            try:
                self._client.create_registered_model(model, tags={"sweep": self._sweep})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            versions = {
                run_id: self._version(model, run_id) or self._add_version(model, run_id, words)
                for run_id, words in members.items()
            }
            for alias, run_id in aliases.items():
                self._client.set_registered_model_alias(model, alias, versions[run_id])

    def _version(self, model: str, run_id: str) -> str | None:
        """The version of a registered model that a run became, if it did."""
        found = self._client.search_model_versions(f"run_id = '{run_id}'")
        return next((str(version.version) for version in found if version.name == model), None)

    def _add_version(self, model: str, run_id: str, words: str) -> str:
        """Put a run's ONNX file on the run as an MLflow model, with signature and example; register it."""
        run = self._client.get_run(run_id)
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(self._client.download_artifacts(run_id, "model.onnx", scratch))
            write_mlflow_model(source, Path(scratch) / "model")
            self._client.log_artifacts(run_id, str(Path(scratch) / "model"), "model")
        tags = {name: run.data.tags[name] for name in ("sweep", "key", "latency_device") if name in run.data.tags}
        made = self._client.create_model_version(
            model,
            source=f"{run.info.artifact_uri}/model",
            run_id=run_id,
            tags=tags | _numbers(run.data.metrics),
            description=words,
        )
        return str(made.version)

    def close(self, status: str) -> None:
        """End the parent run: `finished` or `interrupted`."""
        with _told():
            self._client.set_tag(self.parent_id, "status", status)
            self._client.set_terminated(self.parent_id, "FINISHED" if status == "finished" else "KILLED")

    def _deliver(self, folder: Path, record: TrialRecord, scores: Mapping[str, float]) -> None:
        run_id = self._find(
            f"tags.key = '{record.key}' AND tags.`mlflow.parentRunId` = '{self.parent_id}'"
        ) or self._create(record.key.rpartition("/")[2], _tags(record) | {"sweep": self._sweep}, started=record.started)
        params = [Param(name, str(value)) for name, value in record.params.items()]
        self._client.log_batch(run_id, params=params)
        ended = int(record.ended * 1000)
        final = {**record.metrics, **scores}
        metrics = [Metric(name, float(value), ended, 0) for name, value in final.items()]
        metrics += [point for epoch in record.curve for point in _curve(epoch, ended)]
        for start in range(0, len(metrics), BATCH_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + BATCH_METRICS])
        for name in record.files:
            self._client.log_artifact(run_id, str(folder / name))
        if record.reason:
            self._client.set_tag(run_id, "reason", record.reason)
        self._client.set_terminated(run_id, STATUS[record.status], end_time=ended)
        write_text(folder / DELIVERED, to_json({"run_id": run_id, "parent_id": self.parent_id}))

    def _has(self, folder: Path) -> bool:
        """Whether the folder's record has been delivered to this store; another one may have got it before."""
        marker = folder / DELIVERED
        return marker.exists() and bool(json.loads(marker.read_text("utf-8")).get("parent_id") == self.parent_id)

    def _find(self, where: str) -> str | None:
        runs = self._client.search_runs([self.experiment_id], where, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _create(self, name: str, tags: Mapping[str, str], *, started: float | None = None) -> str:
        parent = {} if tags["kind"] == "sweep" else {"mlflow.parentRunId": self.parent_id}
        run = self._client.create_run(
            self.experiment_id,
            run_name=name,
            start_time=int((started or time.time()) * 1000),
            tags={**tags, **parent},
        )
        return str(run.info.run_id)


def write_mlflow_model(model: Path, folder: Path) -> None:
    """Wrap an ONNX file as an MLflow model: signature, input example, requirements; one file, weights inside."""
    proto = onnx.load(str(model))
    dims = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    classes = proto.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    floats = np.dtype(np.float32)
    mlflow.onnx.save_model(
        proto,
        str(folder),
        signature=ModelSignature(
            inputs=Schema([TensorSpec(floats, (-1, *dims), "image")]),
            outputs=Schema([TensorSpec(floats, (-1, classes), "logits")]),
        ),
        input_example={"image": np.full((1, *dims), 0.5, dtype=np.float32)},
        pip_requirements=[f"{name}=={version(name)}" for name in ("onnx", "numpy")] + [_runtime()],
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )


def _runtime() -> str:
    """ONNX Runtime as whoever loads the model needs it: the GPU build has the same version and is not needed."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return f"onnxruntime=={version(name)}"
        except PackageNotFoundError:
            continue
    raise TrackingError("no ONNX Runtime is installed; `uv sync` installs it.")


def _numbers(metrics: Mapping[str, float]) -> dict[str, str]:
    """What a version's page shows: tags are text."""
    shown = ("val_accuracy", "test_accuracy", "latency_p50_ms", "size_bytes")
    return {name: f"{metrics[name]:.6g}" for name in shown if name in metrics}


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackingError(str(error).splitlines()[0]) from error


def _tags(record: TrialRecord) -> dict[str, str]:
    tags = {"kind": "trial", "key": record.key, "stage": record.stage, "status": record.status}
    if record.trial_number is not None:
        tags["trial_number"] = str(record.trial_number)
    tags |= record.tags
    return tags | ({"control": "teacher"} if record.stage == "teacher" else {})


def _curve(epoch: EpochRecord, time_ms: int) -> list[Metric]:
    values = {
        "train_loss": epoch.train_loss,
        "train_accuracy": epoch.train_accuracy,
        "val_loss": epoch.val_loss,
        "val_accuracy": epoch.val_accuracy,
        "learning_rate": epoch.learning_rate,
    }
    return [Metric(f"{epoch.stage}_{name}", value, time_ms, epoch.epoch) for name, value in values.items()]


def _write_ahead(database: Path) -> None:
    """Switch a SQLite file to write-ahead logging: 8 ms instead of 24 ms a batch, and readers do not block."""
    database.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(database, timeout=20)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
