"""What a sweep says at its end."""

import io
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from analysis.reading.doors import Terminal
from sweeps.display.console import Screen
from sweeps.running.outcome import announce, describe_given, finish, serve_command
from sweeps.search.presets import quick
from tests.sweeps.running.tune.test_recovery import record
from trainables.layout import database_uri
from trainables.tracking.tracker import Tracker


def test_records_that_wait_for_mlflow_are_counted_and_said(tmp_path: Path) -> None:
    """They make the exit code 1: a sweep without a front is not done."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        config = quick().replace(name="night", out=tmp_path, tracking_uri=uri)
        record(config.folder / "trials" / "00000", 0, "failed")
        places = {"experiment": "digits", "sweep": "night", "sweep_id": "x", "artifacts": tmp_path / "artifacts"}
        said = io.StringIO()
        run = SimpleNamespace(
            config=config, tracker=Tracker(uri, **places), console=Terminal(file=said), score=lambda metrics: 0.0
        )
        assert finish(run, "finished") == 1
    assert "1 records wait in" in said.getvalue()
    assert f"`python -m analysis sync --out {tmp_path} --tracking-uri {uri}` or the same command" in said.getvalue()


def test_the_page_is_served_from_where_the_records_are(tmp_path: Path) -> None:
    out = tmp_path / "my runs"
    assert serve_command("night", out, database_uri(out)) == f"python -m analysis serve --name night --out '{out}'"
    for uri in ("http://head:5000", database_uri(tmp_path)):
        assert serve_command("night", out, uri) == f"python -m analysis serve --name night --tracking-uri {uri}"


def test_who_brings_a_trained_network_reads_how_it_does_and_what_could_be_wrong() -> None:
    config = quick().replace(base=quick().search.base.replace(teacher_weights="0" * 16, teacher_epochs=0))
    dataset = SimpleNamespace(num_val=200, num_test=400, num_classes=4, class_names=("ant", "bee", "cat", "dog"))
    metrics = {"val_accuracy": 0.255, "test_accuracy": 0.25}
    run = SimpleNamespace(config=config, dataset=dataset, teacher=SimpleNamespace(metrics=metrics))
    assert describe_given(run) == (
        "Your network gets 25.5 % of 200 validation and 25.0 % of 400 test images right. Should it be more, check its"
        " normalisation, its image size and the order of its classes, here: ant, bee, cat ..."
    )
    metrics["val_accuracy"] = 0.99
    assert "It has probably learned the validation images" in describe_given(run)
    run.config = quick()
    assert describe_given(run) == ""


@pytest.mark.parametrize(("mode", "told"), [("people", True), ("quiet", False)])
def test_it_is_said_when_the_sweep_begins_and_not_to_who_wants_the_result_alone(
    tmp_path: Path, mode: str, told: bool
) -> None:
    said = io.StringIO()
    config = quick().replace(base=quick().search.base.replace(teacher_weights="0" * 16, teacher_epochs=0), out=tmp_path)
    tracker = SimpleNamespace(sweep_artifacts=lambda files: None, deliver=lambda folder, scores: None)
    metrics = {
        "val_accuracy": 0.9,
        "test_accuracy": 0.9,
        "latency_p50_ms": 1.0,
        "reference_latency_p50_ms": 1.0,
        "size_bytes": 1.0,
    }
    announce(
        SimpleNamespace(
            config=config,
            dataset=SimpleNamespace(num_val=200, num_test=200, num_classes=2, class_names=("ant", "bee")),
            teacher=SimpleNamespace(metrics=metrics, status="finished", stage="teacher"),
            console=Screen(mode, file=said),
            tracker=tracker,
            score=lambda metrics: 0.0,
        )
    )
    assert (
        "Your network gets 90.0 % of 200 validation and 90.0 % of 200 test images right." in said.getvalue()
    ) == told
