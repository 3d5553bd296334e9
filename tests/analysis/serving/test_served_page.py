"""The served page in a real browser: sliders filter, a click downloads the very bytes, keys suffice, it is live."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient

from analysis.findings.front import competing
from analysis.reading.runs import read_runs
from tests.analysis.chromium import EVIL, Noted, browser, needs_chromium, playwright
from tests.analysis.conftest import log_sweep, trial_rows
from tests.analysis.serving.served import Served, made, run_of, serving

pytest.importorskip("dash", reason="an extra: uv sync --extra serve")
__all__ = ["browser"]  # the fixture
pytestmark = [pytest.mark.slow, needs_chromium]
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    made(out)
    return out


@pytest.fixture(scope="module")
def served(night: Path) -> Iterator[Served]:
    with serving(night) as running:
        yield running


@pytest.fixture
def opened(browser: "playwright.Browser") -> Iterator["Opened"]:
    opened = Opened(browser)
    yield opened
    opened.page.context.close()
    assert opened.complaints == []
    assert [url for url in opened.asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))] == []


class Opened(Noted):
    """A page that the server serves."""

    def __init__(self, browser: "playwright.Browser", **context: Any) -> None:
        super().__init__(browser, **context)
        self.page.set_default_timeout(PATIENCE_MS)

    def open(self, url: str) -> "playwright.Page":
        self.page.goto(url)
        self.page.wait_for_selector("#front .main-svg")
        self.page.wait_for_selector("#rows tr")
        return self.page

    def rows(self) -> list[list[str]]:
        """The texts of the table's cells."""
        return [row.split("\t") for row in self.page.locator("#rows").inner_text().splitlines()]

    def says(self, words: str) -> None:
        """Wait until the line under the sliders has the words."""
        self.page.wait_for_function(
            "words => document.getElementById('fitting')?.textContent.includes(words)", arg=words, timeout=PATIENCE_MS
        )


def candidates(out: Path) -> pd.DataFrame:
    return competing(read_runs(f"sqlite:///{out / 'mlflow.db'}", "night"))


def move(page: "playwright.Page", slider: str, share: float) -> float:
    """Put a slider at a share of its way, as a pointer would; its value."""
    box = page.locator(f"#{slider}").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 8 + share * (box["width"] - 16), box["y"] + box["height"] / 2)
    return float(page.locator(f"#{slider}").input_value())


@pytest.mark.parametrize(
    ("slider", "share", "column", "factor"),
    [
        ("max_latency_ms", 0.4, "latency_p50_ms", 1),
        ("max_size_mb", 0.6, "size_bytes", 1e-6),
        ("min_accuracy", 0.5, "val_accuracy", 100),
    ],
)
def test_a_slider_filters_table_and_plot(
    opened: Opened, served: Served, night: Path, slider: str, share: float, column: str, factor: float
) -> None:
    page = opened.open(served.url)
    everyone = candidates(night)
    opened.says(f"{len(everyone)} of {len(everyone)} fit")
    limit = move(page, slider, share)
    values = factor * everyone[column]
    fits = everyone[values >= limit] if slider == "min_accuracy" else everyone[values <= limit]
    assert 0 < len(fits) < len(everyone)
    opened.says(f"{len(fits)} of {len(everyone)} fit")
    assert {row[0] for row in opened.rows()} == {f"trial {number:.0f}" for number in fits["trial_number"]}
    assert f"{limit:g}" in page.locator(f"#{slider}-said").inner_text()
    # the teacher and the limit's line are drawn beside the points
    page.wait_for_function(
        "count => document.querySelectorAll('#front .scatterlayer .point').length === count", arg=len(fits) + 1
    )
    page.click("#only")
    page.wait_for_selector("#only[aria-pressed=true]")
    front = fits[fits["pareto"]]
    page.wait_for_function("count => document.querySelectorAll('#rows tr').length === count", arg=len(front))
    page.click("#loosen")
    opened.says(f"{len(everyone)} of {len(everyone)} fit")


def test_limits_that_nobody_keeps_are_said(opened: Opened, served: Served) -> None:
    page = opened.open(served.url)
    move(page, "max_latency_ms", 0.0)
    move(page, "min_accuracy", 1.0)
    opened.says("None of 11 candidates fits; loosen a limit.")


def test_a_click_on_a_point_tells_all_and_downloads_the_very_bytes(opened: Opened, served: Served, night: Path) -> None:
    page = opened.open(served.url)
    place = page.locator("#front .scatterlayer .point").first.bounding_box()
    assert place is not None
    page.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.wait_for_selector("#detail .files a")
    number = int(re.fullmatch(r"trial (\d+)", page.inner_text("#detail-title"))[1])
    row = candidates(night).set_index("trial_number").loc[number]
    told = page.inner_text("#detail")
    assert f"alpha\t{row['alpha']:g}" in told and f"{100 * row['val_accuracy']:.2f} %" in told
    assert f"night@{number}" in told
    assert page.locator("#detail .main-svg").count() >= 3  # latency, accuracy and loss
    assert "p99" in page.locator("#detail [role=img]").first.get_attribute("aria-label")
    with page.expect_download() as download:
        page.click("#detail .files a >> text=model.onnx")
    client = MlflowClient(tracking_uri=f"sqlite:///{night / 'mlflow.db'}")
    model = night / "artifacts" / run_of(client, number) / "artifacts" / "model.onnx"
    assert download.value.suggested_filename == "model.onnx"
    assert Path(download.value.path()).read_bytes() == model.read_bytes()


def test_keys_alone_filter_choose_and_reach_the_file(opened: Opened, served: Served) -> None:
    page = opened.open(served.url)
    focused = "() => document.activeElement.textContent || document.activeElement.id"
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focused))
    assert reached[:3] == ["max_latency_ms", "max_size_mb", "min_accuracy"]
    assert reached[3:5] == ["Front only", "No limits"] and reached[-1].startswith("trial ")
    page.focus("#max_latency_ms")
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => !document.getElementById('fitting').textContent.startsWith('11 of 11')")
    page.keyboard.press("End")
    opened.says("11 of 11 fit")
    page.locator("#rows button").nth(2).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail .files a")
    page.wait_for_function("() => document.activeElement.id === 'detail'")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "model.onnx"


def test_a_new_trial_appears_without_a_reload(opened: Opened, tmp_path: Path) -> None:
    client = made(tmp_path, trials=4)
    with serving(tmp_path) as running:
        page = opened.open(running.url)
        opened.says("3 of 3 fit")
        page.locator("#rows button").nth(1).click()
        page.wait_for_selector("#detail .files a")
        chosen = page.inner_text("#detail-title")
        parent = client.search_runs(["1"], "tags.kind = 'sweep'")[0].info.run_id
        row = trial_rows(6)[5]
        row["metrics"] |= {"val_accuracy": 0.99, "latency_p50_ms": 9.0}
        tags = {"mlflow.parentRunId": parent, "kind": "trial", "sweep": "night", "key": "night/5"}
        tags |= {**row["tags"], "latency_device": "cpu:1"}
        child = client.create_run("1", tags=tags).info.run_id
        for key, value in row["params"].items():
            client.log_param(child, key, value)
        for key, value in row["metrics"].items():
            client.log_metric(child, key, value)
        opened.says("4 of 4 fit. The most accurate is trial 5")
        assert opened.rows()[0][0] == "trial 5"
        assert float(page.locator("#max_latency_ms").input_value()) >= 9  # no limit stays none
        assert page.inner_text("#detail-title") == chosen
        # the server ends, and the page says so
        assert running.end() == 0
        page.wait_for_selector("#lost:not([hidden])")
    opened.complaints.clear()  # the browser's own, of a server that does not answer


def test_a_sweep_without_a_candidate_waits_for_the_first(opened: Opened, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    log_sweep(
        client, client.create_experiment("cifar10", artifact_location=(tmp_path / "artifacts").as_uri()), "early", []
    )
    with serving(tmp_path) as running:
        opened.page.goto(running.url)
        opened.says("No finished candidate yet")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (390, "light"), (1280, "dark")])
def test_phone_width_and_dark_mode(browser: "playwright.Browser", served: Served, width: int, scheme: str) -> None:
    opened = Opened(browser, viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = opened.open(served.url)
    page.locator("#rows button").first.click()
    page.wait_for_selector("#detail .files a")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
    assert (brightness < 60) == (scheme == "dark")
    ink = page.evaluate("getComputedStyle(document.querySelector('#front .xtitle')).fill")
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) / 3 > 180) == (scheme == "dark")
    page.context.close()
    assert opened.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_a_screen_reader_would_miss(
    browser: "playwright.Browser", served: Served, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="brings axe-core; of the dev group").Axe()
    opened = Opened(browser, color_scheme=scheme, bypass_csp=True)  # axe is a script that the page has not
    page = opened.open(served.url)
    page.locator("#rows button").first.click()
    page.wait_for_selector("#detail .files a")
    found = axe.run(page).response["violations"]
    page.context.close()
    assert [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found] == []


def test_names_from_outside_are_shown_as_text(opened: Opened, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    rows = trial_rows(4)
    for row in rows:
        row["params"] |= {"dataset": EVIL, "student_model": EVIL, "pruning_method": EVIL}
    log_sweep(
        client,
        client.create_experiment("cifar10", artifact_location=(tmp_path / "artifacts").as_uri()),
        f"night {EVIL}",
        rows,
    )
    with serving(tmp_path) as running:
        page = opened.open(running.url)
        assert EVIL in page.inner_text("h1")
        page.locator("#rows button").first.click()
        page.wait_for_selector("#detail .main-svg")
        assert EVIL in page.inner_text("#detail")
        assert page.locator("img").count() == 0


@pytest.mark.nightly
def test_ten_thousand_candidates_load_and_filter(opened: Opened, tmp_path: Path) -> None:
    from tests.benchmarks.ten_thousand import fill

    fill(tmp_path, 10_000)
    with serving(tmp_path) as running:
        page = opened.open(running.url)
        opened.says("10,000 of 10,000 fit")
        assert len(opened.rows()) == 50
        page.wait_for_selector("#front .gl-canvas", state="attached")
        assert "WebGL" not in page.inner_text("#front")
        move(page, "max_latency_ms", 0.3)
        page.wait_for_function("() => !document.getElementById('fitting').textContent.startsWith('10,000 of')")
        page.locator("#next").click()
        page.wait_for_function("() => document.getElementById('range').textContent.startsWith('51 to 100')")
