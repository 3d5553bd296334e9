"""MLflow's own page of a sweep, in a browser: the columns and charts that it opens on."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import mlflow
import pytest

from analysis.pages.mlflow_view import CHARTS_FIELD, VIEW_FIELD, view_tags
from tests.analysis.chromium import Noted, browser, needs_chromium, playwright

__all__ = ["browser"]
pytestmark = [needs_chromium, pytest.mark.slow]
SWEEP = "night"
RUNS = {"small": (0.91, 0.05, 400_000), "large": (0.97, 0.4, 4_000_000)}
RUNS |= {f"poor {number}": (0.5 - number / 100, 0.4, 4_000_000) for number in range(12)}
START_S = 90


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's server over two runs of a sweep; its address up to the experiment."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("photos", tags=view_tags(SWEEP))
    for name, (accuracy, latency, size) in RUNS.items():
        run = client.create_run(experiment, run_name=name, tags={"kind": "trial", "sweep": SWEEP}).info.run_id
        values = {"val_accuracy": accuracy, "latency_p50_ms": latency, "size_bytes": size, "achieved_macs_ratio": 0.5}
        for metric, value in values.items():
            client.log_metric(run, metric, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/health", child)
        yield f"{address}/#/experiments/{experiment}/runs?{VIEW_FIELD}={SWEEP}"
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait()


def wait_for(address: str, child: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and child.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"mlflow ui does not answer within {START_S} s (exit code {child.poll()})")


def test_the_list_opens_on_accuracy_latency_and_size(browser: "playwright.Browser", server: str) -> None:
    page = Noted(browser, viewport={"width": 1400, "height": 900}).page
    page.goto(server)
    for column in ("latency_p50_ms", "size_bytes", "val_accuracy"):
        cell = page.get_by_role("columnheader", name=column).first
        cell.wait_for()
        box = cell.bounding_box()
        assert box is not None and box["x"] + box["width"] <= 1400, f"{column} is beyond the edge"
    assert page.get_by_role("columnheader", name="achieved_macs_ratio").count() == 0
    names = page.get_by_role("link", name="small").or_(page.get_by_role("link", name="large"))
    assert names.all_inner_texts() == ["large", "small"], "the most accurate first"


def test_the_charts_are_accuracy_against_latency_and_size(browser: "playwright.Browser", server: str) -> None:
    page = Noted(browser, viewport={"width": 1400, "height": 900}).page
    page.goto(f"{server}&{CHARTS_FIELD}")
    page.locator(".js-plotly-plot").nth(1).wait_for()
    drawn = page.locator(".js-plotly-plot").all()
    titles = [(plot.locator(".xtitle").text_content(), plot.locator(".ytitle").text_content()) for plot in drawn]
    assert [plot.locator(".scatterlayer .point").count() for plot in drawn] == [len(RUNS)] * 2
    assert titles == [("latency_p50_ms", "val_accuracy"), ("size_bytes", "val_accuracy")]
