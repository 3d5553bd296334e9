"""A pytest plugin: every test runs in `null_device.computing()`."""

from collections.abc import Generator

import null_device
import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    with null_device.computing():
        return (yield)
