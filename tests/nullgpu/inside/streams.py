"""PyTorch's CUDA sanitizer sees no race in streamed data, and would see one."""

import itertools
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

import pytest
from setups import Case, run
from torch.cuda import _sanitizer

from trainables.stages.data import streaming
from trainables.stages.models.devices import accelerator


class _Here(Executor):
    """Reads ahead in the caller's thread: the sanitizer watches one thread, and it is streams that must be in order."""

    def __init__(self, *given: object, **named: object) -> None: ...

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*given, **named))
        return done


@pytest.fixture(scope="module", autouse=True)
def sanitizer() -> Iterator[None]:
    _sanitizer.enable_cuda_sanitizer()
    walk = traceback.walk_stack
    with pytest.MonkeyPatch.context() as patch:
        # a stack is kept of every kernel: most of it is pytest's, and most of the time goes there
        patch.setattr(traceback, "walk_stack", lambda frame: itertools.islice(walk(frame), 12))
        patch.setattr(streaming, "ThreadPoolExecutor", _Here)
        yield
    _sanitizer.cuda_sanitizer.disable()


def test_streamed_data_have_no_race() -> None:
    asked = run(Case(streamed=True, augment="all"))
    assert asked.epoch["stream_wait"] > 0 and asked.epoch["h2d_pinned"] > 0


def test_a_missing_wait_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "take_over", lambda tensor, ready: None)
    with pytest.raises(_sanitizer.CUDASanitizerErrors, match="detected 1 errors"):
        run(Case(streamed=True))
