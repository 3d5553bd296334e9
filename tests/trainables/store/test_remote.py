import json
import logging
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.trainables.store.steps import counting, flip, run
from trainables.store.lease import Lease
from trainables.store.objects import Objects
from trainables.store.results import Store, stage_key

KEY = stage_key("student", version=1, alpha=0.9)
QUICK = 0.4  # seconds after which a silent node is given up


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}/runs" if request.param == "memory" else f"file://{tmp_path}/shared"


def node(url: str, tmp_path: Path, name: str) -> Store:
    return Store(url, cache=tmp_path / name, stale_s=QUICK)


def contents(url: str) -> list[str]:
    """What a key has: contents without their digest."""
    names = Objects(url).sizes(f"{KEY}/")
    return sorted(name.rpartition("/")[2].rpartition("-")[2] for name in names)


def test_a_url_needs_a_cache() -> None:
    with pytest.raises(ValueError, match=r"s3://bucket/runs needs a local folder, but got cache=None"):
        Store("s3://bucket/runs")


def test_two_nodes_compute_once_and_download_once(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = node(url, tmp_path, "a"), node(url, tmp_path, "b")
    reports, folder = run(first.obtain(KEY, counting))
    assert reports == [0, 1, 2]
    assert folder == tmp_path / "a" / str(KEY)
    assert contents(url) == ["manifest.json", "record.json", "steps"]
    assert run(second.obtain(KEY, counting)) == ([], tmp_path / "b" / str(KEY))
    assert (tmp_path / "b" / str(KEY) / "steps").read_text() == "0\n1\n2\n"
    monkeypatch.setattr(Objects, "download", None)
    assert node(url, tmp_path, "b").find(KEY) == tmp_path / "b" / str(KEY)


def test_another_node_goes_on_from_the_last_report(url: str, tmp_path: Path) -> None:
    attempt = node(url, tmp_path, "a").obtain(KEY, counting)
    assert [next(attempt), next(attempt)] == [0, 1]
    attempt.close()
    assert node(url, tmp_path, "b").find(KEY) is None
    assert run(node(url, tmp_path, "b").obtain(KEY, counting))[0] == [2]
    assert contents(url) == ["manifest.json", "record.json", "steps"]
    manifest = json.loads(Objects(url).read(f"{KEY}/manifest.json") or b"")
    assert manifest["reports"] == 3


def test_a_node_prefers_its_own_work_if_it_is_as_far(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = node(url, tmp_path, "a")
    attempt = store.obtain(KEY, counting)
    next(attempt)
    attempt.close()
    monkeypatch.setattr(Objects, "download", None)
    assert run(store.obtain(KEY, counting))[0] == [1, 2]


def test_a_network_that_is_away_for_a_while_costs_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*args: object) -> None:
        raise OSError("network is unreachable")

    attempt = node(url, tmp_path, "a").obtain(KEY, counting)
    with monkeypatch.context() as patch:
        patch.setattr(Objects, "upload", away)
        assert [next(attempt), next(attempt)] == [0, 1]
    assert f"unfinished {KEY} was not uploaded: network is unreachable" in caplog.text
    assert run(attempt)[0] == [2]
    assert run(node(url, tmp_path, "b").obtain(KEY, counting))[0] == []


def test_nodes_that_need_one_key_at_once_compute_it_once(url: str, tmp_path: Path) -> None:
    starts: list[str] = []

    def slow(folder: Path) -> Generator[int, None, None]:
        starts.append(str(folder))
        time.sleep(2 * QUICK)  # longer than a lease lasts without its heartbeat
        yield from counting(folder)

    def work(name: str) -> None:
        run(node(url, tmp_path, name).obtain(KEY, slow))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(starts) == 1
    assert all((tmp_path / name / str(KEY) / "record.json").exists() for name in "abc")


def test_the_lease_of_a_dead_node_is_taken_over(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Lease, "_renew", lambda self: None)  # kill -9: no heartbeat, no release
        dead = node(url, tmp_path, "a").obtain(KEY, counting)
        assert next(dead) == 0
        started = time.monotonic()
        assert run(node(url, tmp_path, "b").obtain(KEY, counting))[0] == [1, 2]
        assert time.monotonic() - started > QUICK
    dead.close()
    assert run(node(url, tmp_path, "c").obtain(KEY, counting))[0] == []


@pytest.mark.parametrize("host", [socket.gethostname(), "elsewhere"])
def test_the_lease_of_a_process_that_died_on_this_machine_is_taken_over_at_once(
    url: str, tmp_path: Path, host: str
) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    owner = {"owner": f"{host}:{child.pid}:x", "time": time.time()}
    Objects(url).write(f"{KEY}/lease.json", json.dumps(owner).encode())
    started = time.monotonic()
    run(Store(url, cache=tmp_path / "a", stale_s=4).obtain(KEY, counting))
    assert (time.monotonic() - started < 3) == (host != "elsewhere")


def test_a_lease_from_long_ago_is_taken_over_at_once(url: str, tmp_path: Path) -> None:
    Objects(url).write(f"{KEY}/lease.json", json.dumps({"owner": "old", "time": time.time() - 3600}).encode())
    started = time.monotonic()
    run(Store(url, cache=tmp_path / "a", stale_s=60).obtain(KEY, counting))
    assert time.monotonic() - started < 10


def test_a_node_that_was_cut_off_stops_and_does_no_harm(url: str, tmp_path: Path) -> None:
    attempt = node(url, tmp_path, "a").obtain(KEY, counting)
    assert next(attempt) == 0
    Objects(url).write(f"{KEY}/lease.json", json.dumps({"owner": "other", "time": time.time()}).encode())
    time.sleep(QUICK)
    with pytest.raises(ConnectionError, match=f"lease {KEY}/lease.json .* went to another node"):
        next(attempt)
    assert b"other" in (Objects(url).read(f"{KEY}/lease.json") or b"")


def test_damage_behind_the_url_is_found_said_and_repaired(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(node(url, tmp_path, "a").obtain(KEY, counting))
    name = next(name for name in Objects(url).sizes() if name.endswith("-steps"))
    Objects(url).write(name, b"0\n1\n3\n")
    with caplog.at_level(logging.WARNING):
        assert run(node(url, tmp_path, "b").obtain(KEY, counting))[0] == [0, 1, 2]
    assert f"store: {KEY}/manifest.json is damaged (steps does not have its SHA-256)" in caplog.text
    assert run(node(url, tmp_path, "c").obtain(KEY, counting))[0] == []


def test_damage_in_a_cache_is_repaired_from_the_url(url: str, tmp_path: Path) -> None:
    _, folder = run(node(url, tmp_path, "a").obtain(KEY, counting))
    flip(folder / "steps")
    assert run(node(url, tmp_path, "a").obtain(KEY, counting)) == ([], folder)
    assert (folder / "steps").read_text() == "0\n1\n2\n"


def test_every_node_knows_what_can_never_succeed(url: str, tmp_path: Path) -> None:
    def never(folder: Path) -> Generator[int, None, None]:
        raise ValueError("training diverged: loss is nan")
        yield

    with pytest.raises(ValueError, match="loss is nan"):
        run(node(url, tmp_path, "a").obtain(KEY, never))
    with pytest.raises(ValueError, match="loss is nan"):
        run(node(url, tmp_path, "b").obtain(KEY, counting))


def test_a_store_of_another_format_is_refused(url: str, tmp_path: Path) -> None:
    Objects(url).write("store.json", b'{"format": 99}')
    with pytest.raises(ValueError, match=f"{url} was written in store format 99, but this version reads format 2"):
        node(url, tmp_path, "a").find(KEY)


def test_objects_of_every_file_system_behave_alike(url: str, tmp_path: Path) -> None:
    objects = Objects(url)
    assert objects.read("a/b") is None
    assert objects.sizes() == {}
    assert [objects.create("a/b", b"1"), objects.create("a/b", b"2")] == [True, False]
    objects.write("a/c", b"345")
    assert objects.sizes() == {"a/b": 1, "a/c": 3}
    assert 0 <= objects.age("a/c") < 10
    objects.delete(["a/b", "none"])
    (tmp_path / "x").write_bytes(b"67")
    objects.upload(tmp_path / "x", "d/x")
    objects.download("d/x", tmp_path / "new" / "x")
    assert (tmp_path / "new" / "x").read_bytes() == b"67"
    with pytest.raises(FileNotFoundError, match="none"):
        objects.download("none", tmp_path / "y")
