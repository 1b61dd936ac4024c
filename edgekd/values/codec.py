"""Dataclasses to plain data and back, strictly.

Every file and every message on the wire goes through here, on the host and on the device alike, so it needs
the standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union

from edgekd.errors import ConfigError
from edgekd.values.artifact import Artifact

T = TypeVar("T")

_WORDS: dict[Any, str] = {str: "a string", int: "a whole number", bool: "true or false"}
_LARGEST = sys.float_info.max


def plain(value: object) -> Any:
    """Turn a value into dicts, lists, strings, numbers, booleans and None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} has no plain form")


def encode(value: object) -> str:
    """Write a value as one line of JSON."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def decode(kind: type[T], data: Any, where: str = "") -> T:
    """Read a value of `kind` from plain data.

    Args:
        kind: a dataclass, enum, scalar, or `tuple[X, ...]`, `dict[str, X]`, `X | None` of those; or a scalar,
            a list and a table of which the data's form picks one, such as `float | Section`; or dataclasses of
            which the data's "kind" picks one, the first where the data has none.
        data: what JSON or TOML gave.
        where: the name to use in messages, such as `[budget]`.

    Raises:
        ConfigError: a key is unknown or missing, or a value has another type.

    """
    return typing.cast("T", _decode(kind, data, where))


def fingerprint(value: object) -> str:
    """Name a value by content: paths never count, an artifact counts by its digest alone."""
    text = json.dumps(_identity(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache  # reading them is what decoding would spend its time on
def hints_of(kind: type) -> Mapping[str, Any]:
    """Return the types of a dataclass's fields."""
    return types.MappingProxyType(typing.get_type_hints(kind))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Suggest the known word that was probably meant, and list the others."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(sorted(known))}"


def _identity(value: object) -> Any:
    name = getattr(value, "fingerprint", None)
    if isinstance(name, str):  # a live object, such as a task, that names itself by content
        return name
    if isinstance(value, Artifact):
        return value.sha256
    if isinstance(value, Path):
        raise TypeError(f"a bare path says nothing about content: wrap {value} in an Artifact")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _identity(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _identity(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identity(item) for item in value]
    return plain(value)


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin in (Union, types.UnionType):
        return None if data is None else _decode(_fitting(arguments, data, where), data, where)
    if origin is tuple:
        return _decode_tuple(arguments, data, where)
    if origin is dict:
        _expect(isinstance(data, Mapping), "a table", data, where)
        return {str(key): _decode(arguments[1], item, _join(where, key)) for key, item in data.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, where)
    return _decode_scalar(kind, data, where)


def _fitting(arguments: tuple[Any, ...], data: Any, where: str) -> Any:
    """Pick the kind of the data's form: a table for a table, a list for a list, else the first."""
    kinds = [argument for argument in arguments if argument is not type(None)]
    if isinstance(data, Mapping):
        tables = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        return _of_kind(tables, data, where) if len(tables) > 1 else next(iter(tables), kinds[0])
    if isinstance(data, (list, tuple)):
        return next((kind for kind in kinds if typing.get_origin(kind) is tuple), kinds[0])
    return kinds[0]


def _of_kind(tables: list[Any], data: Mapping[str, Any], where: str) -> Any:
    """Pick the dataclass whose own `kind`, a default, is the data's."""
    known = {table.kind: table for table in tables}
    named = data.get("kind", tables[0].kind)
    if not isinstance(named, str) or named not in known:
        raise ConfigError(
            f"{named!r} is not possible{_in(where)}", mend=did_you_mean(str(named), list(known))
        )
    return known[named]


def _decode_tuple(arguments: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(data, (list, tuple)), "a list", data, where)
    if len(arguments) == 2 and arguments[1] is Ellipsis:  # noqa: PLR2004 - tuple[X, ...]
        return tuple(_decode(arguments[0], item, f"{where}[{at}]") for at, item in enumerate(data))
    _expect(len(data) == len(arguments), f"{len(arguments)} items", data, where)
    return tuple(_decode(a, item, f"{where}[{at}]") for at, (a, item) in enumerate(zip(arguments, data)))


def _decode_dataclass(kind: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, Mapping), "a table", data, where)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in data:
        if key not in fields:
            raise ConfigError(f"unknown key {key!r}{_in(where)}", mend=did_you_mean(str(key), list(fields)))
    hints = hints_of(kind)
    given = {key: _decode(hints[key], item, _join(where, key)) for key, item in data.items()}
    for name, field in fields.items():
        optional = (
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        )
        if name not in given and not optional:
            raise ConfigError(f"{name!r} is missing{_in(where)}", mend=f"give {name!r}{_in(where)}")
    return kind(**given)


def _decode_scalar(kind: Any, data: Any, where: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        known = [str(member.value) for member in kind]
        if data not in known:
            raise ConfigError(f"{data!r} is not possible{_in(where)}", mend=did_you_mean(str(data), known))
        return kind(data)
    if kind is Path:
        _expect(isinstance(data, str), "a path", data, where)
        return Path(data)
    if kind is float:
        return _decode_float(data, where)
    right = isinstance(data, kind) and (kind is bool or not isinstance(data, bool))
    _expect(right, _WORDS.get(kind, f"a {kind.__name__}"), data, where)
    return data


def _decode_float(data: Any, where: str) -> float:
    _expect(isinstance(data, (int, float)) and not isinstance(data, bool), "a number", data, where)
    # TOML has nan and inf; neither is a limit, a weight or a time, and both slip through comparisons.
    _expect(-_LARGEST <= data <= _LARGEST, "a finite number", data, where)
    return float(data)


def _expect(holds: bool, wanted: str, data: Any, where: str) -> None:  # noqa: FBT001 - an assertion with words
    if not holds:
        raise ConfigError(f"{where or 'the value'} must be {wanted}", cause=f"it is {data!r}"[:200])


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _in(where: str) -> str:
    return f" in [{where}]" if where else ""
