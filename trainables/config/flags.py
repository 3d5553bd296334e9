"""Command-line flags from configurations: one flag per field, with its docstring as help (standard library only)."""

import argparse
import ast
import dataclasses
import difflib
import inspect
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from trainables.config.candidate import CROPS, LATENCY_RUNTIMES, OPTIMIZERS, CandidateConfig
from trainables.config.checks import is_text
from trainables.config.compression import PRUNED_SHARES, RECOVERY_BUDGETS
from trainables.config.escaping import plain
from trainables.config.training import TRAIN_PRECISIONS
from trainables.layout import CHECKOUT

# `sweeps/NAME.py` -> the command that a wheel installs for it
ENTRY_POINTS = {
    "kd_prune": "compression-sweep",
    "ablation": "compression-ablation",
    "studies": "compression-studies",
    "runtimes": "compression-runtimes",
}
# Settings that take one of a few words; the configurations check them.
WORDS: Mapping[str, Collection[str]] = {
    "crop": CROPS,
    "train_precision": TRAIN_PRECISIONS,
    "teacher_optimizer": OPTIMIZERS,
    "pruning_of": PRUNED_SHARES,
    "recovery_budget": RECOVERY_BUDGETS,
    "latency_runtime": LATENCY_RUNTIMES,
}
SHELLS = ("bash", "zsh", "tcsh")
_SCRIPTS = re.compile(rf"(?:python )?(?:sweeps/)?\b({'|'.join(ENTRY_POINTS)})\.py\b")


def as_typed(text: str) -> str:
    """The text with `python sweeps/NAME.py` as the installed command, if that was typed or there is no checkout."""
    typed = Path(sys.argv[0]).name in ENTRY_POINTS.values()
    if not typed and (CHECKOUT / "pyproject.toml").exists():
        return text
    return _SCRIPTS.sub(lambda match: ENTRY_POINTS[match[1]], text)


class OneLineParser(argparse.ArgumentParser):
    """A parser that answers bad input with one line naming flag, value and fix, and with exit code 2."""

    usual: Collection[str] = ()
    """Options that `--help` names where there is `--help-all`, too; all of them if empty."""

    def __init__(self, **kwargs: Any) -> None:
        # an abbreviation in a script would change its meaning when a flag with the same beginning is added
        self.groups: list[Any] = []
        super().__init__(allow_abbrev=False, **kwargs)

    def add_argument_group(self, *args: Any, **kwargs: Any) -> Any:
        """Add a group, and keep it in `groups`."""
        self.groups.append(super().add_argument_group(*args, **kwargs))
        return self.groups[-1]

    def error(self, message: str) -> NoReturn:
        """Print `message` on one line and exit with code 2."""
        self.refuse([message])

    def refuse(self, messages: Collection[str]) -> NoReturn:
        """Print each message on a line of its own and exit with code 2."""
        for message in messages:
            sys.stderr.write(plain(f"{as_typed(self.prog)}: {as_typed(' '.join(message.split()))}\n"))
        raise SystemExit(2)

    def long_options(self) -> dict[str, argparse.Action]:
        """What each `--option` does."""
        pairs = [(option, action) for action in self._actions for option in action.option_strings]
        return {option: action for option, action in pairs if option.startswith("--")}

    def format_help(self) -> str:
        """The help, with commands the way the user types them: the usual flags, where a parser names some."""
        if not self.usual:
            return as_typed(super().format_help())
        unusual = [action for action in self._actions if not {*action.option_strings} & {*self.usual}]
        kept = [(action, action.help) for action in unusual], [(g, g.description) for g in self.groups]
        try:
            for action in unusual:
                action.help = argparse.SUPPRESS
            for group in self.groups:
                group.description = None
            more = f"{len(unusual)} more flags: --help-all\n\n"
            before, examples, after = super().format_help().partition("examples:\n")
            return as_typed(before + more + examples + after)
        finally:
            for action, text in kept[0]:
                action.help = text
            for group, text in kept[1]:
                group.description = text

    def format_all(self) -> str:
        """The help with every flag."""
        return as_typed(super().format_help())

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse like argparse, but suggest the closest known flag for an unknown one, and refuse what is no text."""
        for word in (*(sys.argv[1:] if args is None else args), str(Path.cwd())):
            if not is_text(word):
                name = os.fsencode(word)
                self.error(f"{name!r} is no text in this locale; set PYTHONUTF8=1, and give files UTF-8 names.")
        flags, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = list(self.long_options())
            close = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            if not unknown[0].startswith("-"):
                self.error(f"{unknown[0]!r} belongs to no flag; see --help.")
            self.error(f"unknown flag {unknown[0]}; {f'did you mean {close[0]}?' if close else 'see --help.'}")
        return flags


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> NoReturn:
        import shtab

        script, module = parser.prog.removesuffix(".py"), parser.prog.rpartition(" ")[2]
        parser.prog = ENTRY_POINTS.get(script, f"compression-{module}")  # a shell completes installed commands
        print(shtab.complete(parser, values))
        parser.exit()


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> NoReturn:
        assert isinstance(parser, OneLineParser)
        print(parser.format_all(), end="")
        parser.exit()


def add_help_flags(group: Any) -> None:
    """Add `--help` and `--help-all`."""
    group.add_argument("-h", "--help", action="help", help="Show the usual flags and exit")
    group.add_argument(
        "--help-all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS, help="Show all flags and exit"
    )


def add_completion_flag(group: Any) -> None:
    """Add `--print-completion`."""
    text = "Print the script that makes a shell complete the installed command, and exit"
    settings = {"action": _PrintCompletion, "choices": SHELLS, "metavar": "SHELL", "default": argparse.SUPPRESS}
    group.add_argument("--print-completion", help=f"{text}: {', '.join(SHELLS)}", **settings)


def flag_name(field_name: str) -> str:
    """The flag that sets a field: `--pruning-ratio` for `pruning_ratio`."""
    return "--" + field_name.replace("_", "-")


def add_config_flags(
    parser: argparse.ArgumentParser, defaults: CandidateConfig, *, leave_out: Collection[str] = ()
) -> None:
    """Add one flag for every field of every part of a candidate; a flag not given is `None` in the namespace."""
    for part in dataclasses.fields(defaults):
        value = getattr(defaults, part.name)
        add_flags(parser.add_argument_group(part.name, inspect.getdoc(type(value))), value, leave_out=leave_out)


def add_flags(
    group: Any, defaults: Any, *, leave_out: Collection[str] = (), words: Mapping[str, Collection[str]] = WORDS
) -> None:
    """Add one flag for every field of a dataclass instance; a flag not given is `None` in the namespace.

    Args:
        leave_out: fields without a flag.
        words: field -> the few words that it takes, for the help.
    """
    docs = field_docs(type(defaults))
    hints = typing.get_type_hints(type(defaults))
    for field in dataclasses.fields(defaults):
        if field.name not in leave_out:
            doc, default = docs[field.name], getattr(defaults, field.name)
            _add_flag(group, field.name, hints[field.name], doc, default, words.get(field.name, ()))


def set_fields(flags: argparse.Namespace, config_class: type) -> dict[str, Any]:
    """The fields of a dataclass that were set on the command line, with their values."""
    names = (field.name for field in dataclasses.fields(config_class))
    return {name: value for name in names if (value := getattr(flags, name, None)) is not None}


def config_from_flags(config: CandidateConfig, flags: argparse.Namespace) -> CandidateConfig:
    """A copy of `config` with the fields that were set on the command line.

    Raises:
        ValueError: if a value is out of range.
    """
    given = {name: getattr(flags, name, None) for name in config.flat()}
    return config.replace(**{name: value for name, value in given.items() if value is not None})


def field_docs(config_class: type) -> dict[str, str]:
    """The docstring under every field of a dataclass, on one line."""
    # Python drops strings that follow a field, so that they have to be read from the source
    body = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, doc in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr):
            docs[field.target.id] = " ".join(str(ast.literal_eval(doc.value)).split())
    return docs


def _add_flag(group: Any, name: str, hint: Any, doc: str, default: Any, words: Collection[str]) -> None:
    # `int | None` is a flag of type int: None is the default, and nobody types it
    kind = next(t for t in typing.get_args(hint) if t is not types.NoneType) if typing.get_args(hint) else hint
    doc, unset, means = doc.removesuffix(".").partition(" (default: ")  # what it means that there is no value
    shown = f"{unset}{means}" if default is None and unset else f" (default: {'none' if default is None else default})"
    text = f"{doc}{shown}".replace("%", "%%")  # argparse takes % for a format specifier
    if kind is bool:
        # default=None tells a flag that was left out from `--no-...`
        group.add_argument(flag_name(name), action=argparse.BooleanOptionalAction, default=None, help=text)
    else:
        metavar = f"{{{','.join(words)}}}" if words else {int: "N", float: "X", str: "NAME", Path: "PATH"}[kind]
        group.add_argument(flag_name(name), type=kind, default=None, metavar=metavar, help=text)


def with_flags(message: str, names: Collection[str]) -> str:
    """The message with settings written as flags, the way the user typed them: `alpha=2.0` becomes `--alpha 2.0`."""
    # the lookbehind keeps `alpha` from matching inside `mixup_alpha`
    pattern = re.compile(rf"(?<![\w-])({'|'.join(sorted(names, key=len, reverse=True))})=")
    return pattern.sub(lambda match: f"{flag_name(match[1])} ", message)
