"""Encode records as JSON text and decode them, checked field by field (standard library only).

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
    """A text does not decode to the expected record. The store never caches this as a failure: files can be mended."""


def to_json(record: Any) -> str:
    """A record or a plain mapping as JSON text; paths become strings, tuples become lists."""
    row = dataclasses.asdict(record) if dataclasses.is_dataclass(record) and not isinstance(record, type) else record
    return json.dumps(row, indent=1, default=str)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: if it does not exist.
        UndecodableError: naming the file, if it is truncated or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (RecursionError, ValueError) as error:
        raise UndecodableError(f"{path} cannot be read: {error}") from error


def read_record(kind: type[Kind], folder: Path, *, extra: Mapping[str, Any] = NOTHING) -> Kind:
    """Read the `record.json` of a folder as a record of this class; raises like `read_json` and `decode`."""
    path = folder / RECORD
    return decode(kind, read_json(path), where=path, extra=extra)


def decode(kind: type[Kind], row: Any, *, where: object, extra: Mapping[str, Any] = NOTHING) -> Kind:
    """Build the value that a JSON `row` encodes.

    Args:
        kind: a dataclass, or a type its fields may have: `bool`, `int`, `float` (also accepts whole numbers), `str`,
            `Path`, `Any`, tuples, mappings with text keys, other dataclasses, and unions of those with None.
        row: the output of `json.loads`.
        where: the start of the error message, such as the file.
        extra: values, in their final form, of fields that are missing from the row or override it.

    Raises:
        UndecodableError: naming the field, such as `curve[3].val_loss`, if one is unknown, missing or of another type.
    """
    known: Any = kind
    try:
        value: Kind = _plan(known).build(row, extra) if extra else _form(known).decode(row)
    except _MismatchError as error:  # `from None`: its frames repeat the path that the message already names
        raise UndecodableError(f"{where}: {error}") from None
    return value


class _MismatchError(Exception):
    """A row does not match its type; each enclosing level prepends its part of the path as the error propagates."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self._problem, self._path = problem, ""

    def inside(self, part: str) -> "_MismatchError":
        # fields join with a dot, indices do not: `curve[3].val_loss`
        dot = "." if self._path and not self._path.startswith("[") else ""
        self._path = part + dot + self._path
        return self

    def __str__(self) -> str:
        return f"{self._path} {self._problem}".lstrip()


@dataclasses.dataclass(frozen=True)
class _Form:
    """The decoder of one type."""

    name: str  # for messages
    decode: Callable[[Any], Any]
    # JSON types that need no decoding. Callers skip the call for them, which saves time: most fields are of them.
    as_is: frozenset[type] = frozenset()


def _mismatch(name: str, row: Any) -> _MismatchError:
    text = repr(row)
    # 60 characters identify a value; a whole curve in the message would hide the field's name
    return _MismatchError(f"must be {name}, but is {text if len(text) <= 60 else text[:60] + '...'}")


@cache  # resolving type hints takes far longer than decoding a row
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
        return _fixed_tuple(arguments)
    if isinstance(origin, type) and issubclass(dict, origin) and arguments[0] is str:
        return _mapping(arguments[1])
    raise TypeError(f"fields of type {kind} cannot be decoded.")


def _scalar(name: str, *as_is: type) -> _Form:
    """The form of numbers, texts, booleans and None."""

    def decode(row: Any) -> Any:
        # exact types rather than isinstance: `True` is an int in Python, but JSON's `true` is not a number
        if type(row) in as_is:
            return row
        raise _mismatch(name, row)

    return _Form(name, decode, frozenset(as_is))


def _path(row: Any) -> Path:
    if isinstance(row, str):
        return Path(row)
    raise _mismatch("a path", row)


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
    """The form of a union: the first type that fits. `X | None` keeps the more precise error message of X."""
    # null last, so that forms[0] is X in `X | None`
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
        raise _mismatch(name, row)

    return _Form(name, decode, as_is)


def _sequence(kind: Any) -> _Form:
    form = _form(kind)
    name = f"a list, each {form.name}"

    def decode(row: Any) -> tuple[Any, ...]:
        if not isinstance(row, list):
            raise _mismatch(name, row)
        done: list[Any] = []
        try:
            for item in row:
                done.append(item if type(item) in form.as_is else form.decode(item))
        except _MismatchError as error:
            raise error.inside(f"[{len(done)}]") from None
        return tuple(done)

    return _Form(name, decode)


def _fixed_tuple(kinds: tuple[Any, ...]) -> _Form:
    forms = [_form(kind) for kind in kinds]
    name = f"a list of {len(forms)}"

    def decode(row: Any) -> tuple[Any, ...]:
        if not isinstance(row, list) or len(row) != len(forms):
            raise _mismatch(name, row)
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
            raise _mismatch(name, row)
        done, key = {}, ""
        try:
            for key, value in row.items():
                done[key] = value if type(value) in form.as_is else form.decode(value)
            return done
        except _MismatchError as error:
            raise error.inside(f"[{key!r}]") from None

    return _Form(name, decode)


class _Plan:
    """The decoder of a dataclass; built once per class, because records are read by the thousand."""

    def __init__(self, kind: Any) -> None:
        hints = typing.get_type_hints(kind)
        fields = [field for field in dataclasses.fields(kind) if field.init]
        missing = dataclasses.MISSING
        self._kind = kind
        self._forms = {field.name: _form(hints[field.name]) for field in fields}
        self._needed = {f.name for f in fields if f.default is missing and f.default_factory is missing}

    def build(self, row: Any, extra: Mapping[str, Any] = NOTHING) -> Any:
        """Build the record from a row; values in `extra` are final and override it."""
        if not isinstance(row, dict):
            raise _mismatch(f"an object ({self._kind.__name__})", row)
        values, forms, name = dict(extra), self._forms, ""
        # one try around the loop, not one per field: `name` still holds the offending field when it fails
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
        except ValueError as error:  # raised by the dataclass's own checks
            raise _MismatchError(f"is not valid: {error}") from None


@cache
def _plan(kind: Any) -> _Plan:
    return _Plan(kind)
