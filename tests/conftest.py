import logging
import os
import sys
from collections.abc import Iterator

import pytest

import sweeps  # noqa: F401 - makes settings that Ray reads when it is imported, which some test files do first

# Read when torch is imported. Threads that wait for each other by spinning, on cores that other tests want, took five
# times the CPU time of one thread; a sweep's trials are given theirs by the sweep.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that short ones are left to even out the ends of two workers."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Stages flush denormals in their process; the next test in this one gets them back (Hypothesis needs them)."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray in this process, of two cores and four GPUs that it takes our word for; sweeps that find it use it."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()
