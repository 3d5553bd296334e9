"""What a sweep says at its end."""

import io
import socket
from pathlib import Path
from types import SimpleNamespace

from analysis.reading.doors import Terminal
from sweeps.running.outcome import describe_given, finish, serve_command
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
    dataset = SimpleNamespace(num_val=200, num_classes=4, class_names=("ant", "bee", "cat", "dog"))
    run = SimpleNamespace(config=config, dataset=dataset, teacher=SimpleNamespace(metrics={"val_accuracy": 0.255}))
    assert describe_given(run) == (
        "Your network gets 25.5 % of 200 validation images right. Should it be more, check --normalize,"
        " --image-size and the order of its classes, here: ant, bee, cat ..."
    )
    run.config = quick()
    assert describe_given(run) == ""
