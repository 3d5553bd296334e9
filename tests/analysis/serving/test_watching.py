"""A watched sweep: read again when the store has changed, not too often, and kept while the store is away."""

import dataclasses
from pathlib import Path

import pytest

from analysis.reading.runs import Runs, read_runs
from analysis.serving import watching
from analysis.serving.watching import Watched


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(watching.time, "monotonic", lambda: self.now)


class Reader:
    """Reads the sweep, counts how often, and takes as long as it is told."""

    def __init__(self, store: str, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.asked: list[str | None] = []
        self.takes = 0.0
        self.fails = False
        self.without: list[int] = []

    def __call__(self, name: str | None) -> Runs:
        self.asked.append(name)
        self.clock.now += self.takes
        if self.fails:
            raise ValueError("the store is away.")
        runs = read_runs(self.store, "night")
        return dataclasses.replace(runs, frame=runs.frame[~runs.frame["trial_number"].isin(self.without)])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def reader(store: str, clock: Clock) -> Reader:
    return Reader(store, clock)


def test_a_store_that_has_not_changed_is_not_read_again(store: str, reader: Reader, clock: Clock) -> None:
    watched = Watched(store, reader)
    for _ in range(5):
        clock.now += 10
        watched.look()
    assert reader.asked == [None]


def test_a_change_is_read_under_the_same_name_and_counts_if_it_is_seen(
    store: str, out: Path, reader: Reader, clock: Clock
) -> None:
    reader.without = [0]
    watched = Watched(store, reader)
    (out / "mlflow.db").touch()
    clock.now += 10
    assert watched.look().version == 1  # written to, but nothing that is shown is new
    reader.without = []
    (out / "mlflow.db").touch()
    clock.now += 10
    standing = watched.look()
    assert reader.asked == [None, "night", "night"]
    assert standing.version == 2 and 0 in standing.candidates["trial_number"].tolist()


def test_reading_takes_one_part_in_twenty_at_most(store: str, out: Path, reader: Reader, clock: Clock) -> None:
    reader.takes = 3.0
    watched = Watched(store, reader)
    for _ in range(100):
        (out / "mlflow.db").touch()
        clock.now += 1
        watched.look()
    assert 1 <= len(reader.asked) - 1 <= 2
    server = Watched("http://127.0.0.1:5000", reader)
    reader.takes, before = 0.0, len(reader.asked)
    clock.now += 100
    for _ in range(100):
        clock.now += 1
        server.look()
    assert 9 <= len(reader.asked) - before <= 11


def test_a_store_that_is_away_leaves_what_was_read(store: str, out: Path, reader: Reader, clock: Clock) -> None:
    watched = Watched(store, reader)
    before = watched.standing
    reader.fails = True
    (out / "mlflow.db").touch()
    clock.now += 10
    assert watched.look() is before and watched.trouble == "the store is away."
    reader.fails = False
    clock.now += 10
    watched.look()
    assert watched.trouble == ""


def test_a_mark_stays_with_its_run(store: str, out: Path, reader: Reader, clock: Clock) -> None:
    reader.without = [0, 1]
    watched = Watched(store, reader)
    before = watched.standing.candidates["mark"].to_dict()
    reader.without = []
    (out / "mlflow.db").touch()
    clock.now += 10
    after = watched.look().candidates["mark"].to_dict()
    assert before.items() <= after.items() and len(set(after.values())) == len(after) == len(before) + 2
    assert all(watched.run_of(mark) == run_id for run_id, mark in after.items())
    assert watched.run_of(-1) is watched.run_of(10_000) is None
