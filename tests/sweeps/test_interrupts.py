import signal
import subprocess
import sys
import textwrap
import time

import pytest

SCRIPT = """
    import time
    from sweeps.interrupts import Interrupted, stoppable
    with stoppable():
        try:
            print("ready", flush=True)  # inside: the signal may come as soon as this is read
            time.sleep(60)
        except Interrupted as stop:
            print("saving", stop.code, flush=True)
            time.sleep(60)
"""


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_the_first_signal_ends_in_order_and_the_second_at_once(first: signal.Signals, second: signal.Signals) -> None:
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == f"saving {128 + first}\n"
        started = time.monotonic()
        process.send_signal(second)
        assert process.wait(timeout=10) == 128 + second
        assert time.monotonic() - started < 5
