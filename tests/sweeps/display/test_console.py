"""Standard output whose reader leaves, and events that nothing else gets between."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from sweeps.display.console import Screen

SCRIPT = """
import sys
import textwrap
from sweeps.display.console import Screen
screen = Screen(sys.argv[1])
sys.stdin.read()  # until the reader has gone
for number in range(3):
    screen.print("x" * 100_000)
    screen.event("trial", number=number, text="x" * 100_000)
print("after", file=sys.stderr)
sys.exit(130)
"""


@pytest.mark.parametrize("mode", ["people", "quiet", "json"])
def test_a_reader_that_leaves_ends_nothing_and_is_told_once(mode: str) -> None:
    """As `| head` does, and tee on Ctrl-C: the exit code stays the sweep's own."""
    words = [sys.executable, "-c", SCRIPT, mode]
    read, write = os.pipe()
    pipes = {"stdin": subprocess.PIPE, "stdout": write, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, text=True, **pipes) as process:
        os.close(write)
        os.close(read)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
    assert said.count("Nobody reads standard output any more") == 1
    assert said.endswith("after\n")
    assert "Traceback" not in said


def test_events_go_on_when_nobody_reads_the_errors() -> None:
    code = """
        from sweeps.display.console import Screen
        screen = Screen("json")
        for text in ("one", "two"):
            screen.print(text)
            screen.event(text)
    """
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=write, text=True, timeout=60)
    os.close(write)
    assert done.returncode == 0
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["one", "two"]


def test_events_are_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen("json")
    with screen.alone():
        print("a user's module")
        screen.event("trial")
    said = capsys.readouterr()
    assert json.loads(said.out)["event"] == "trial"
    assert "a user's module" in said.err
