import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

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


INTERACTIVE = """
    import sys, time
    sys.ps1 = ">>> "
    from sweeps.cluster.interrupts import Interrupted, stoppable
    try:
        with stoppable():
            try:
                print("ready", flush=True)
                time.sleep(60)
            except Interrupted:
                print("saving", flush=True)
                while True:
                    time.sleep(0.1)
    except KeyboardInterrupt as stop:
        print(type(stop).__name__, flush=True)
"""


def test_the_second_signal_leaves_a_notebook_its_memory() -> None:
    words = [sys.executable, "-c", textwrap.dedent(INTERACTIVE)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "saving\n"
        time.sleep(ONE_REQUEST_S + 0.1)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "KeyboardInterrupt\n"
        assert process.wait(timeout=30) == 0


TUNED = """
    import time
    import sweeps
    import ray
    from ray import tune
    from sweeps.cluster.interrupts import Interrupted, StoppableTuner, WatchRay, stoppable
    from sweeps.cluster.ray_private import private_ray

    class Endless(tune.Trainable):
        def step(self):
            open(sys.argv[1] + "/ready", "w").close()
            time.sleep(0.2)
            return {}

    settings = dict(num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level=40)
    with private_ray(**settings), stoppable():
        try:
            settings = tune.RunConfig(
                storage_path=sys.argv[1],
                verbose=0,
                callbacks=[WatchRay()],
                failure_config=tune.FailureConfig(max_failures=-1),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            )
            StoppableTuner(Endless, run_config=settings).fit()
        except Interrupted as stop:
            print(type(stop).__name__, stop.code, getattr(stop, "process", ""), flush=True)
"""


def children(pid: int) -> dict[str, int]:
    """Program's name -> process, of all children of a process."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found[Path(stat.with_name("cmdline").read_text().split("\0")[0]).name] = int(stat.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "said"), [("raylet", "RayDiedError 130 raylet"), ("", "Interrupted 143 ")], ids=["raylet", "the group"]
)
def test_a_driver_whose_own_ray_dies_says_so_and_ends(victim: str, said: str, tmp_path: Path) -> None:
    """By itself, or because a signal for the driver went to the whole process group: then Ray dies first."""
    script = textwrap.dedent(TUNED).replace("sys.argv[1]", repr(str(tmp_path)))
    words = [sys.executable, "-c", script]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as driver:
        for _ in range(2400):
            if (tmp_path / "ready").exists():
                break
            time.sleep(0.05)
        started = time.monotonic()
        if victim:
            os.kill(children(driver.pid)[victim], signal.SIGKILL)
        else:
            os.killpg(driver.pid, signal.SIGTERM)
        assert driver.stdout is not None
        assert any(line.rstrip("\n") == said for line in driver.stdout)  # Ray writes there, too
        assert time.monotonic() - started < 30
        assert driver.wait(timeout=60) == 0
