"""`--config FILE`: settings from a TOML file, read as the flags that they are, before those of the command line."""

import argparse
import difflib
import reprlib
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import tomli_w

from trainables.config.flags import OneLineParser, flag_name
from trainables.layout import SWEEP_TOML

# They say what one run does or prints, and are no settings.
NOT_SETTINGS = ("config", "help", "help_all", "json", "plan", "print_completion", "quiet", "retry_failed")
EITHER = ("budget", "trials")  # a sweep takes one: whoever asks for one of them later has left the other
_MOST_VALUES, _MOST_LETTERS = 50, 160  # of a setting that is refused: an array of images is none
SPACE = "SPACE"  # metavar of the flags that take a list or a range


def add_config_flag(group: Any) -> None:
    """Add `--config`."""
    text = f"TOML file of settings, such as {SWEEP_TOML} in the folder of a sweep; flags override it (default: none)"
    group.add_argument("--config", type=Path, metavar="FILE", help=text)


def settings_of(parser: OneLineParser) -> dict[str, argparse.Action]:
    """Key in a file -> the flag of that name, for every flag that is a setting."""
    keys = {option[2:].replace("-", "_"): action for option, action in parser.long_options().items()}
    return {key: action for key, action in keys.items() if key not in NOT_SETTINGS and not key.startswith("no_")}


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """What a `--config` file says; nothing without one."""

    path: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """By key; tables are headings alone."""
    twice: tuple[str, ...] = ()
    """Keys that stand in more than one table."""

    @classmethod
    def of(cls, content: Mapping[str, Any], *, path: Path | None = None) -> "ConfigFile":
        """What a file with this content would say; a None, which only a program can say, is a setting left out."""
        tables = [value for value in content.values() if isinstance(value, Mapping)]
        pairs = [(key, value) for key, value in content.items() if not isinstance(value, Mapping)]
        pairs += [pair for table in tables for pair in table.items()]
        keys = [key for key, _ in pairs]
        twice = tuple(sorted({key for key in keys if keys.count(key) > 1}))
        settings = {key: _as_in_a_file(value) for key, value in pairs if value is not None}
        return cls(path=path, settings=settings, twice=twice)

    def words(self, *keys: str) -> list[str]:
        """The flags that these keys stand for, as far as they are there."""
        return [_word(key, self.settings[key]) for key in keys if key in self.settings]

    def under(self, later: Collection[str]) -> "ConfigFile":
        """What is left of the file where these keys are asked for later: of `EITHER` not the other one."""
        gone = [key for key in EITHER if key not in later and any(other in later for other in EITHER)]
        return replace(self, settings={key: value for key, value in self.settings.items() if key not in gone})

    def checked(self, parser: OneLineParser) -> list[str]:
        """The flags that the file stands for; mistakes are answered by the parser, a line each, with exit code 2."""
        if mistakes := self.mistakes(parser):
            where = f"--config {self.path}: " if self.path else ""
            parser.refuse([where + said for said in mistakes])
        return self.words(*self.settings)

    def mistakes(self, parser: OneLineParser) -> list[str]:
        """A line for each key that is no setting of the parser, and for each value of a wrong type."""
        known = settings_of(parser)
        twice = [f"{key} stands in two tables; leave one out." for key in self.twice]
        return [*twice, *(said for key, value in self.settings.items() if (said := _mistake(key, value, known)))]


def read(words: list[str], parser: OneLineParser) -> ConfigFile:
    """The file that the words of a command name; one that cannot be read is answered by the parser."""
    first = OneLineParser(prog=parser.prog, add_help=False)
    add_config_flag(first)
    path = first.parse_known_args(words)[0].config
    if path is None:
        return ConfigFile()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"--config {path}: cannot be read ({error.strerror}).")
    except (ValueError, RecursionError) as error:  # no TOML, or no UTF-8
        parser.error(f"--config {path}: is no TOML ({error}).")
    typed = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    return ConfigFile.of(content, path=path).under(typed)


class RaisingParser(OneLineParser):
    """A parser for calls from a program: what a command would print before it exits is raised, as `ValueError`."""

    def refuse(self, messages: Collection[str]) -> NoReturn:
        """Raise the messages, one a line."""
        raise ValueError("\n".join(" ".join(message.split()) for message in messages)) from None


def from_program(config: str | Path | Mapping[str, Any] | None, settings: Mapping[str, Any]) -> ConfigFile:
    """What a program asks for by a file or a mapping, overridden by keywords.

    Raises:
        ValueError: if the file cannot be read.
    """
    if isinstance(config, str | Path):
        file = read(["--config", str(config)], RaisingParser())
    else:
        file = ConfigFile.of(config or {})
    later = ConfigFile.of(settings).settings
    return ConfigFile(settings={**file.under(later).settings, **later}, twice=file.twice)


def _as_in_a_file(value: object) -> object:
    """The value as a TOML file would have it."""
    if isinstance(value, list | tuple):
        return [_as_in_a_file(part) for part in value]
    number = getattr(value, "tolist", None)  # of NumPy
    return str(value) if isinstance(value, Path) else number() if callable(number) else value


def _word(key: str, value: object) -> str:
    if isinstance(value, bool):
        return flag_name(key if value else f"no_{key}")
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{flag_name(key)}={text}"


def _mistake(key: str, value: object, known: Mapping[str, argparse.Action]) -> str | None:
    """What is wrong with a key or its value; None if nothing is, as far as its type goes."""
    typed = _typed(key, value)
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        return f"unknown key in {typed}; {f'did you mean {close[0]}?' if close else 'see --help for the names.'}"
    fits, wanted = _type_of(known[key])
    parts = value if isinstance(value, list) and known[key].metavar == SPACE else [value]
    if parts and all(isinstance(part, fits) and (fits == (bool,) or not isinstance(part, bool)) for part in parts):
        return None
    return f"{typed} must be {wanted}."


def _typed(key: str, value: object) -> str:
    """A setting as in a file, or the beginning of what a program gave in its place."""
    if isinstance(value, list) and len(value) > _MOST_VALUES:
        return f"{key} = {reprlib.repr(value)[:_MOST_LETTERS]}"
    try:
        return tomli_w.dumps({key: value}).strip()[:_MOST_LETTERS]
    except TypeError:  # from Python, not from a file
        return f"{key} = {value!r:.{_MOST_LETTERS}}"


def _type_of(action: argparse.Action) -> tuple[tuple[type, ...], str]:
    """Types of TOML that a flag takes, and what they are called."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return (bool,), "true or false"
    if action.metavar == SPACE:
        return (int, float, str), 'a value, a list of values, or a range such as "0.5:1"'
    if action.type is int:
        return (int,), "a whole number"
    if action.type is float:
        return (int, float), "a number"
    if action.type in (None, str, Path):
        return (str,), "text"
    return (int, float, str), "a number or text"
