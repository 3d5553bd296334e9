"""What the README files print can be typed: every command's flags are known to its parser."""

import re
import shlex
from pathlib import Path

import pytest

from analysis.__main__ import COMMANDS as ANALYSIS
from analysis.__main__ import EXAMPLES, parser
from sweeps import ablation, kd_prune, runtimes, studies
from trainables.store import __main__

ROOT = Path(__file__).parents[2]
FILES = [ROOT / folder / "README.md" for folder in ("", "sweeps", "trainables", "analysis")]
COMMAND = re.compile(r"^    (?:[A-Z]+=\S+ )?(python -m analysis\b.*?)(?:\s{2,}#.*)?$", re.MULTILINE)
OURS = re.compile(
    r"(?:^    (?:[A-Z]+=\S+ )?(?:.*&& uv run )?|-- )"
    r"(python (?:sweeps/\w+\.py|-m trainables\.store)(?: .*?)?)(?:\s+#.*| \.\.\.)?$",
    re.MULTILINE,
)


def checked(words: list[str]) -> None:
    """Make the configuration that a command of ours asks for, as far as that needs nothing but its flags."""
    program = words[1]
    if program == "-m":
        __main__._parser().parse_args(words[3:])
    elif program == "sweeps/runtimes.py":
        list(runtimes._cells(runtimes._parser().parse_args(words[2:])))
    elif program == "sweeps/kd_prune.py":
        kd_prune._config(kd_prune._parse(words[2:])[1])
    else:
        named = [*studies.STUDIES[words[2]].flags.split(), *words[3:]] if "studies" in program else words[2:]
        ablation.config_from(ablation.parse(named)[1])


def texts() -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in FILES).replace("\\\n", " ")


def commands() -> list[str]:
    return sorted(set(COMMAND.findall(texts())))


def test_the_readme_has_commands_for_looking_choosing_and_shipping() -> None:
    words = {command.split()[3] for command in commands() if len(command.split()) > 3}
    assert {"select", "export", "report", "importance", "compare", "du"} <= words


@pytest.mark.parametrize("command", commands())
def test_analysis_commands_parse_as_printed(command: str) -> None:
    words = shlex.split(command.split("  #")[0])[3:]
    parser().parse_args(words if words and not words[0].startswith("-") else ["front", *words])


@pytest.mark.parametrize("name", sorted(ANALYSIS))
def test_the_help_of_each_analysis_command_ends_with_an_example_that_parses(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        parser().parse_args([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.rstrip().endswith(f"example: python -m analysis {EXAMPLES[name]}")
    assert parser().parse_args(shlex.split(EXAMPLES[name])).command == name


def own_commands() -> list[str]:
    return sorted(set(OURS.findall(texts())))


@pytest.mark.parametrize("command", own_commands())
def test_commands_of_sweeps_and_store_are_taken_as_printed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big.pt").touch()  # the reader's trained network
    monkeypatch.chdir(tmp_path)
    checked(shlex.split(command))


@pytest.mark.parametrize("command", [one for one in own_commands() if "kd_prune" in one and "--gpus" not in one])
def test_no_command_without_a_gpu_trains_for_hours_when_pasted(command: str) -> None:
    _, flags = kd_prune._parse(shlex.split(command)[2:])
    assert flags.preset is None, "what fits the machine"
    assert (flags.budget or 0) <= 3600
    base = kd_prune._preset(flags).search.base
    assert base.teacher.teacher_model in ("alexnet", "resnet20")


def test_every_program_has_a_command_in_the_readme() -> None:
    programs = {shlex.split(command)[1] for command in own_commands()}
    assert programs == {"-m", *(f"sweeps/{name}.py" for name in ("kd_prune", "ablation", "studies", "runtimes"))}


def test_a_wrong_flag_in_a_command_of_ours_would_be_seen() -> None:
    with pytest.raises(SystemExit):
        checked(shlex.split("python sweeps/kd_prune.py --alpha-range 0:1"))


def test_a_typing_error_would_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["select", "--max-latency", "5"])
    assert "--max-latency" in capsys.readouterr().err
