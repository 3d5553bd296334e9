"""What the README prints can be typed: every command's flags are known to its parser."""

import re
import shlex
from pathlib import Path

import pytest

from analysis import sync
from analysis.__main__ import parser

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"^    (?:[A-Z]+=\S+ )?(python -m analysis\b.*?)(?:\s{2,}#.*)?$", re.MULTILINE)


def commands() -> list[str]:
    return COMMAND.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_readme_has_commands_for_looking_choosing_and_shipping() -> None:
    words = {command.split()[3] for command in commands() if len(command.split()) > 3}
    assert {"select", "export", "report", "importance", "compare", "du"} <= words


@pytest.mark.parametrize("command", commands())
def test_analysis_commands_parse_as_printed(command: str) -> None:
    words = shlex.split(command.split("  #")[0])[3:]
    if words[:1] == ["sync"]:
        sync._parser().parse_args(words[1:])
        return
    parser().parse_args(words if words and not words[0].startswith("-") else ["front", *words])


def test_a_typing_error_would_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["select", "--max-latency", "5"])
    assert "--max-latency" in capsys.readouterr().err
