import functools
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sweeps  # noqa: F401 - makes settings that Ray reads when it is imported, which some test files do first

# Read when torch is imported. Threads that wait for each other by spinning, on cores that other tests want, took five
# times the CPU time of one thread; a sweep's trials are given theirs by the sweep.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """A bare machine with a GPU has no pytest-timeout, and the settings in pyproject.toml name its option."""
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "seconds that a test may take: without the plugin, any number")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m gpu` reads only files with such tests: others import what a bare machine with a GPU does not have."""
    if config.getoption("markexpr") == "gpu" and not _has_gpu_tests(collection_path):
        return True
    return None


@functools.cache
def _has_gpu_tests(path: Path) -> bool:
    if path.is_dir():
        return any(map(_has_gpu_tests, path.rglob("test_*.py")))
    return "mark.gpu" in path.read_text(encoding="utf-8")


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
