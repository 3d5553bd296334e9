"""The pages in a real browser, headless: they draw, a hover shows the recipe, nothing is asked of the network."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.pages.front_files import write_page
from analysis.reading.runs import Runs, read_runs
from tests.analysis.chromium import EVIL, Noted, browser, needs_chromium, playwright

__all__ = ["browser"]  # the fixture
pytestmark = needs_chromium


@pytest.fixture
def opened(browser: "playwright.Browser") -> Iterator["Opened"]:
    opened = Opened(browser)
    yield opened
    opened.page.context.close()


class Opened(Noted):
    """A page that is a file."""

    def open(self, path: Path) -> None:
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_selector("body[data-drawn=front]", timeout=60_000)

    def outside(self) -> list[str]:
        """Requests that left the machine or the file."""
        return [url for url in self.asked if not url.startswith(("file:", "data:", "blob:"))]

    def hover(self, number: int) -> str:
        """Rest the pointer on a point of the front; what the card says."""
        place = self.page.locator("#plot .scatterlayer .point").nth(number).bounding_box()
        assert place is not None
        self.page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
        card = self.page.locator("#card")
        card.wait_for(state="visible", timeout=10_000)
        return str(card.inner_text())


@pytest.fixture(scope="module")
def runs(store: str) -> Runs:
    return read_runs(store)


@pytest.fixture(scope="module")
def front(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (page,) = write_page(runs, tmp_path_factory.mktemp("front"))
    return page


def test_the_front_draws_and_a_hover_shows_the_recipe(opened: Opened, runs: Runs, front: Path) -> None:
    opened.open(front)
    assert opened.page.locator("#plot .scatterlayer .point").count() >= 9  # eight candidates and the teacher
    card = opened.hover(0)
    number = int(re.search(r"trial (\d+)", card)[1])
    row = runs.frame[runs.frame["trial_number"] == number].iloc[0]
    assert f"temperature\t{row['temperature']:g}" in card
    assert row["pruning_method"] in card
    assert f"{100 * row['val_accuracy']:.2f} %" in card and "n = 5,000" in card
    assert f"/runs/{row.name}" in card
    assert opened.complaints == []
    assert opened.outside() == []


def test_parallel_coordinates_and_hypervolume_draw(opened: Opened, front: Path) -> None:
    opened.open(front)
    opened.page.click("button[data-view=parallel]")
    opened.page.wait_for_selector("body[data-drawn=parallel]")
    assert opened.page.locator("#plot .parcoords .y-axis").count() >= 6
    opened.page.click("button[data-view=volume]")
    opened.page.wait_for_selector("body[data-drawn=volume]")
    assert opened.page.locator("#plot .scatterlayer .point").count() == 9  # trial 8 lacks its size, but has its place
    assert opened.complaints == []


def test_front_only_leaves_the_front(opened: Opened, front: Path) -> None:
    opened.open(front)
    before = opened.page.locator("#plot .scatterlayer .point").count()
    opened.page.check("#only")
    opened.page.wait_for_function(
        "before => document.querySelectorAll('#plot .scatterlayer .point').length < before", arg=before, timeout=10_000
    )


def test_a_click_opens_the_run_in_mlflow_and_keeps_the_card(opened: Opened, front: Path) -> None:
    opened.page.context.route("http://127.0.0.1:5000/**", lambda route: route.fulfill(body="MLflow"))
    opened.open(front)
    opened.hover(1)
    with opened.page.context.expect_page() as new:
        opened.page.mouse.down()
        opened.page.mouse.up()
    assert re.fullmatch(r"http://127\.0\.0\.1:5000/#/experiments/\d+/runs/[0-9a-f]{32}", new.value.url)
    assert "pinned" in str(opened.page.locator("#card").get_attribute("class"))


def test_in_a_viewer_that_opens_no_page_a_click_keeps_the_address(opened: Opened, front: Path, tmp_path: Path) -> None:
    """As MLflow's artifact viewer shows it: `<iframe sandbox="allow-scripts">`."""
    viewer = tmp_path / "viewer.html"
    viewer.write_text(
        f'<iframe sandbox="allow-scripts" src="{front.resolve().as_uri()}" style="width: 100%; height: 760px"></iframe>'
    )
    opened.page.goto(viewer.as_uri())
    framed = opened.page.frame_locator("iframe")
    framed.locator("body[data-drawn=front]").wait_for(timeout=60_000)
    place = framed.locator("#plot .scatterlayer .point").first.bounding_box()
    assert place is not None
    opened.page.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    card = framed.locator("#card.pinned")
    card.wait_for(timeout=10_000)
    assert re.search(r"copy its address\): http://127\.0\.0\.1:5000/#/experiments/\d+/runs/\w{32}", card.inner_text())
    assert len(opened.page.context.pages) == 1
    card.locator("button").click()
    card.wait_for(state="detached", timeout=10_000)
    assert opened.complaints == []


def test_names_from_outside_are_shown_as_text(opened: Opened, runs: Runs, tmp_path: Path) -> None:
    frame = runs.frame.assign(student_model=EVIL, dataset=EVIL, pruning_method=EVIL, kd_loss=[EVIL] * len(runs.frame))
    (page,) = write_page(dataclasses.replace(runs, frame=frame), tmp_path)
    opened.open(page)
    assert EVIL in opened.page.inner_text("h1")
    assert EVIL in opened.hover(0)
    assert opened.page.locator("img").count() == 0
    assert opened.complaints == []
