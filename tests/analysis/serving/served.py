"""A served page for tests: the command in a process of its own, over a real store with files to download."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from mlflow import MlflowClient

from tests.analysis.conftest import log_sweep, teacher_rows, trial_rows

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a request got."""

    status: int
    headers: Message
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running command."""

    url: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    @property
    def path(self) -> str:
        """`/TOKEN/`."""
        return urlsplit(self.url).path

    def get(self, path: str, **headers: str) -> Answer:
        """Ask; the path goes out as it stands, dots and all."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest("GET", path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        answer = Answer(status=response.status, headers=response.headers, body=response.read())
        connection.close()
        return answer

    def end(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)


@contextmanager
def serving(out: Path, *words: str) -> Iterator[Served]:
    """The command over a folder of sweeps, until the block ends."""
    command = [sys.executable, "-m", "analysis", "serve", "--out", str(out), *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"http://\S+", said)
            assert found, said
            assert "Ctrl-C" in process.stdout.readline()
            yield Served(url=found[0], process=process)
        finally:
            process.kill()


def made(out: Path, trials: int = 12) -> MlflowClient:
    """Write a sweep `night` with its teacher, curves and files; the last trial failed."""
    out.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    experiment = client.create_experiment("cifar10", artifact_location=(out / "artifacts").as_uri())
    rows = trial_rows(trials)
    for row in rows:
        row["metrics"] |= {"latency_half_width": 0.01}
        row["tags"] |= {"latency_device": "cpu:1"}
    rows[-1]["tags"]["status"] = "failed"
    log_sweep(client, experiment, "night", [*rows, teacher_rows()])
    for run in client.search_runs([experiment], "tags.kind = 'trial'"):
        for epoch in range(1, 4):
            for name in ("train_accuracy", "val_accuracy", "train_loss", "val_loss"):
                client.log_metric(run.info.run_id, f"recovery_{name}", epoch / 4, step=epoch)
        folder = out / "artifacts" / run.info.run_id / "artifacts"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(os.urandom(300_000))
        (folder / "recipe.json").write_text('{"alpha": 0.5}')
    return client


def run_of(client: MlflowClient, number: int) -> str:
    """The run of a trial of `night`."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.sweep = 'night' and tags.trial_number = '{number}'")
    return str(run.info.run_id)
