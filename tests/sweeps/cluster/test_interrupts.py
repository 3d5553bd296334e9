import signal
import subprocess
import sys
import textwrap
import time

import pytest

from sweeps.cluster.interrupts import ONE_REQUEST_S

SCRIPT = """
    import time
    from sweeps.cluster.interrupts import Interrupted, stoppable
    with stoppable():
        try:
            print("ready", flush=True)  # inside: the signal may come as soon as this is read
            time.sleep(60)
        except Interrupted as stop:
            print("saving", stop.code, flush=True)
            time.sleep(60)
"""


BUSY = """
    import hashlib
    from sweeps.cluster.interrupts import stoppable
    with stoppable():
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"no", b"step of Python in here", 200_000_000)
"""


def test_two_signals_in_a_row_stop_at_once_whatever_the_main_thread_waits_for() -> None:
    words = [sys.executable, "-c", textwrap.dedent(BUSY)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "once more stops at once" in process.stderr.readline()
        time.sleep(ONE_REQUEST_S + 0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130


def test_one_request_that_comes_twice_is_one() -> None:
    """`timeout` signals its child and the child's group."""
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT).replace("60", "3")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "saving 143\n"
        assert process.wait(timeout=30) == 0  # it had its three seconds to save


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_the_first_signal_ends_in_order_and_the_second_at_once(first: signal.Signals, second: signal.Signals) -> None:
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == f"saving {128 + first}\n"
        time.sleep(ONE_REQUEST_S + 0.1)
        started = time.monotonic()
        process.send_signal(second)
        assert process.wait(timeout=10) == 128 + second
        assert time.monotonic() - started < 5
