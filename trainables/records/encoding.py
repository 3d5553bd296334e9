"""Records as JSON text and back, checked field by field (standard library only).

No msgspec or pydantic: measuring and training processes run on GPU machines that have torch and torchvision alone.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from trainables.layout import RECORD

Kind = TypeVar("Kind")
NOTHING: Mapping[str, Any] = MappingProxyType({})


class UndecodableError(ValueError):
    """A text that is no such record. The store does not remember it as a stage's own failure: files can be mended."""


def to_json(record: Any) -> str:
    """A record, or a plain mapping, as JSON text; paths become strings, tuples lists."""
    row = dataclasses.asdict(record) if dataclasses.is_dataclass(record) and not isinstance(record, type) else record
    return json.dumps(row, indent=1, default=str)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: if there is none.
        UndecodableError: naming the file, if it is cut off or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UndecodableError(f"{path} cannot be read: {error}") from error


def read_record(kind: type[Kind], folder: Path, *, extra: Mapping[str, Any] = NOTHING) -> Kind:
    """The `record.json` of a folder as a record of this class; raises like `read_json` and `decode`."""
    path = folder / RECORD
    return decode(kind, read_json(path), where=path, extra=extra)


def decode(kind: type[Kind], row: Any, *, where: object, extra: Mapping[str, Any] = NOTHING) -> Kind:
    """The value whose JSON `row` is.

    Args:
        kind: a dataclass, or what its fields may be: `bool`, `int`, `float` (which takes whole numbers, too), `str`,
            `Path`, `Any`, tuples, mappings with text as keys, other dataclasses, and unions of those with None.
        row: of `json.loads`.
        where: what the message begins with, such as the file.
        extra: fields of the dataclass that are not in the row, or that replace those of the row.

    Raises:
        UndecodableError: naming the field, such as `curve[3].val_loss`, if one is unknown, missing or of another type.
    """
    known: Any = kind
    try:
        value: Kind = _plan(known).build(row, extra) if extra else _form(known).decode(row)
    except _MismatchError as error:
        raise UndecodableError(f"{where}: {error}") from None
    return value


class _MismatchError(Exception):
    """Something in a row is not as expected; the path to it grows while the error travels outwards."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self._problem, self._path = problem, ""

    def inside(self, part: str) -> "_MismatchError":
        dot = "." if self._path and not self._path.startswith("[") else ""
        self._path = part + dot + self._path
        return self

    def __str__(self) -> str:
        return f"{self._path} {self._problem}".lstrip()


@dataclasses.dataclass(frozen=True)
class _Form:
    """How values of one type are decoded."""

    name: str
    """For messages."""
    decode: Callable[[Any], Any]
    as_is: frozenset[type] = frozenset()
    """Types in JSON that are the value already: no call is spent on those, and most fields are such."""


def _expected(name: str, row: Any) -> _MismatchError:
    text = repr(row)
    return _MismatchError(f"must be {name}, but is {text if len(text) <= 60 else text[:60] + '...'}")


@cache
def _form(kind: Any) -> _Form:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return ANYTHING
    if kind in _PLAIN:
        return _PLAIN[kind]
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _Form(f"an object ({kind.__name__})", _plan(kind).build)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return _sequence(arguments[0])
    if origin is tuple:
        return _fixed(arguments)
    if isinstance(origin, type) and issubclass(dict, origin) and arguments[0] is str:
        return _mapping(arguments[1])
    raise TypeError(f"fields of type {kind} cannot be decoded.")


def _scalar(name: str, *as_is: type) -> _Form:
    """Numbers, words, flags and None, by exact type: JSON's `true` is no number."""

    def decode(row: Any) -> Any:
        if type(row) in as_is:
            return row
        raise _expected(name, row)

    return _Form(name, decode, frozenset(as_is))


def _path(row: Any) -> Path:
    if isinstance(row, str):
        return Path(row)
    raise _expected("a path", row)


ANYTHING = _Form("anything", lambda row: row, frozenset((dict, list, str, int, float, bool, type(None))))
_PLAIN: Mapping[Any, _Form] = {
    bool: _scalar("true or false", bool),
    int: _scalar("a whole number", int),
    float: _scalar("a number", float, int),
    str: _scalar("a text", str),
    type(None): _scalar("null", type(None)),
    Path: _Form("a path", _path),
}


def _union(kinds: tuple[Any, ...]) -> _Form:
    """The first of several types that fits; with one beside None, its own message tells what does not."""
    forms = sorted((_form(kind) for kind in kinds), key=lambda form: form.name == "null")
    name = " or ".join(form.name for form in forms)
    as_is = frozenset[type]().union(*(form.as_is for form in forms))
    several = len(forms) - (forms[-1].name == "null") > 1

    def decode(row: Any) -> Any:
        if type(row) in as_is:
            return row
        if not several and not forms[0].as_is:
            return forms[0].decode(row)
        for form in forms:
            try:
                return form.decode(row)
            except _MismatchError:
                continue
        raise _expected(name, row)

    return _Form(name, decode, as_is)


def _sequence(kind: Any) -> _Form:
    form = _form(kind)
    name = f"a list, each {form.name}"

    def decode(row: Any) -> tuple[Any, ...]:
        if not isinstance(row, list):
            raise _expected(name, row)
        done: list[Any] = []
        try:
            for item in row:
                done.append(item if type(item) in form.as_is else form.decode(item))
        except _MismatchError as error:
            raise error.inside(f"[{len(done)}]") from None
        return tuple(done)

    return _Form(name, decode)


def _fixed(kinds: tuple[Any, ...]) -> _Form:
    forms = [_form(kind) for kind in kinds]
    name = f"a list of {len(forms)}"

    def decode(row: Any) -> tuple[Any, ...]:
        if not isinstance(row, list) or len(row) != len(forms):
            raise _expected(name, row)
        done: list[Any] = []
        try:
            for form, item in zip(forms, row, strict=True):
                done.append(form.decode(item))
        except _MismatchError as error:
            raise error.inside(f"[{len(done)}]") from None
        return tuple(done)

    return _Form(name, decode)


def _mapping(kind: Any) -> _Form:
    form = _form(kind)
    name = "an object" if kind is Any else f"an object, each value {form.name}"

    def decode(row: Any) -> dict[str, Any]:
        if not isinstance(row, dict):
            raise _expected(name, row)
        done, key = {}, ""
        try:
            for key, value in row.items():
                done[key] = value if type(value) in form.as_is else form.decode(value)
            return done
        except _MismatchError as error:
            raise error.inside(f"[{key!r}]") from None

    return _Form(name, decode)


class _Plan:
    """How a dataclass is built; made once, as records are read by the thousand."""

    def __init__(self, kind: Any) -> None:
        hints = typing.get_type_hints(kind)
        fields = [field for field in dataclasses.fields(kind) if field.init]
        missing = dataclasses.MISSING
        self._kind = kind
        self._forms = {field.name: _form(hints[field.name]) for field in fields}
        self._needed = {f.name for f in fields if f.default is missing and f.default_factory is missing}

    def build(self, row: Any, extra: Mapping[str, Any] = NOTHING) -> Any:
        """The record, its fields from the row but for those that are given in their final form."""
        if not isinstance(row, dict):
            raise _expected(f"an object ({self._kind.__name__})", row)
        values, forms, name = dict(extra), self._forms, ""
        try:
            for name, value in row.items():
                form = forms[name]
                if name not in extra:
                    values[name] = value if type(value) in form.as_is else form.decode(value)
        except KeyError:
            raise _MismatchError(f"is no field of {self._kind.__name__}").inside(name) from None
        except _MismatchError as error:
            raise error.inside(name) from None
        if not self._needed <= values.keys():
            raise _MismatchError("is missing").inside(min(self._needed - values.keys()))
        try:
            return self._kind(**values)
        except ValueError as error:  # of its own checks
            raise _MismatchError(f"is not valid: {error}") from None


@cache
def _plan(kind: Any) -> _Plan:
    return _Plan(kind)
