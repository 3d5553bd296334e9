import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Stages flush denormals in their process; the next test in this one gets them back (Hypothesis needs them)."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
