"""The store and the outbox on S3: a real client (s3fs) against a real protocol, spoken by moto's server on loopback."""

import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from sweeps.cluster.address import check_shared
from tests.trainables.store.steps import counting, run
from tests.trainables.tracking.test_transport import made
from trainables.store.inventory import RemoteShelf
from trainables.store.objects import Objects
from trainables.store.results import stage_key, store_below
from trainables.tracking.transport import fetch, send

KEY = stage_key("student", version=1, alpha=0.9)


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT"), timeout=10).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("no_proxy", "127.0.0.1")
        yield "s3://bucket/runs"
    server.stop()


def test_two_nodes_compute_once_in_a_bucket(storage: str, tmp_path: Path) -> None:
    results = []

    def work(name: str) -> None:
        results.append(run(store_below(tmp_path / name, storage).obtain(KEY, counting)))

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(len(reports) for reports, _ in results) == [0, 3]
    assert {(folder / "steps").read_text() for _, folder in results} == {"0\n1\n2\n"}
    assert len({folder for _, folder in results}) == 2
    (manifest,) = RemoteShelf(f"{storage}/store").results()
    assert (manifest.key, manifest.reports) == (str(KEY), 3)
    assert not [name for name in Objects(storage).sizes() if name.endswith("lease.json")]


def test_a_record_comes_through_a_bucket(storage: str, tmp_path: Path) -> None:
    send(made(tmp_path / "node", "model.onnx"), "night/00003", storage)
    assert fetch(tmp_path / "driver", "night/00003", storage, fits=lambda record: record.key == "night/00003")
    assert (tmp_path / "driver" / "model.onnx").read_text() == "weights"


def test_a_bucket_that_is_not_there_is_told_before_anything_runs(storage: str, tmp_path: Path) -> None:
    check_shared(tmp_path, None, storage)
    with pytest.raises(ValueError, match=r"--storage s3://nobodys/runs: cannot be used \(.*bucket does not exist\)"):
        check_shared(tmp_path, None, "s3://nobodys/runs")
