import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from trainables.store import Key, Store, stage_key


def run(generator: Generator[int, None, Path]) -> tuple[list[int], Path]:
    reports = []
    while True:
        try:
            reports.append(next(generator))
        except StopIteration as end:
            return reports, end.value


def counting(folder: Path) -> Generator[int, None, None]:
    """Three steps, each kept on disk: what an interrupted attempt left is not done again."""
    log = folder / "steps"
    done = len(log.read_text().splitlines()) if log.exists() else 0
    for step in range(done, 3):
        with log.open("a") as file:
            file.write(f"{step}\n")
        yield step
    (folder / "record.json").write_text(json.dumps({"steps": 3}))


def test_computed_once_and_found_again(tmp_path: Path) -> None:
    store, key = Store(tmp_path), stage_key("student", version=1, alpha=0.9)
    assert store.find(key) is None
    reports, folder = run(store.obtain(key, counting))
    assert reports == [0, 1, 2]
    assert run(store.obtain(key, counting)) == ([], folder)
    assert store.find(key) == folder


def test_an_abandoned_result_is_continued_and_was_never_visible(tmp_path: Path) -> None:
    store, key = Store(tmp_path), stage_key("student", version=1)
    attempt = store.obtain(key, counting)
    assert next(attempt) == 0
    attempt.close()
    assert store.find(key) is None
    assert run(store.obtain(key, counting))[0] == [1, 2]


@pytest.mark.parametrize("change", [{"version": 2}, {"parents": ["b"]}, {"alpha": 0.8}, {"beta": 1}])
def test_everything_that_decides_a_result_changes_its_key(change: dict) -> None:
    base = {"version": 1, "parents": ["a"], "alpha": 0.9}
    assert stage_key("student", **base) != stage_key("student", **(base | change))
    assert stage_key("student", **base) == stage_key("student", **dict(reversed(base.items())))
    assert stage_key("student", **base) != stage_key("teacher", **base)


SLOW = """
    import sys, time
    from pathlib import Path
    from trainables.store import Key, Store
    def compute(folder):
        with (folder / "starts").open("a") as file:
            file.write("x")
        yield "started"
        time.sleep(float(sys.argv[2]))
        (folder / "record.json").write_text("{}")
    for report in Store(Path(sys.argv[1])).obtain(Key("s", "k"), compute):
        print(report, flush=True)
    print("has it", flush=True)
"""


def start(root: Path, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_need_one_key_compute_it_once(tmp_path: Path) -> None:
    processes = [start(tmp_path, 0.5) for _ in range(3)]
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert all(output.endswith("has it\n") for output in outputs)
    assert sum("started" in output for output in outputs) == 1
    assert (tmp_path / "s" / "k" / "starts").read_text() == "x"


def test_kill_9_of_the_process_that_computes_lets_the_next_one_in(tmp_path: Path) -> None:
    victim = start(tmp_path, 60)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "started\n"
    waiting = start(tmp_path, 0)
    time.sleep(0.3)
    assert waiting.poll() is None
    os.kill(victim.pid, signal.SIGKILL)
    assert waiting.communicate(timeout=30)[0] == "started\nhas it\n"
    assert Store(tmp_path).find(Key("s", "k")) is not None
