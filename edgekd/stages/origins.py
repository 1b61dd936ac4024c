"""Where settings come from: TOML files, the environment and the command line, each as a checked layer."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from edgekd.errors import ConfigError
from edgekd.values.codec import decode, did_you_mean, hints_of, plain
from edgekd.values.job import Job

# The same library under two names; mypy, which reads for 3.10, need not have the backport at hand.
tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

PREFIX = "EDGEKD_"
DEFAULT = "default"
COMMAND_LINE = "command line"

# Values that may name a file: read relative to where they were given.
_PATHS = ("teacher.model", "teacher.weights", "task.data", "target.profile")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One dotted key, its plain value, and who said so."""

    key: str
    value: Any
    origin: str


Layer = tuple[Setting, ...]


def defaults(kind: type = Job, place: str = "") -> Layer:
    """Return what a job holds when nobody says anything; keys that must be given are left out."""
    found: list[Setting] = []
    for field in dataclasses.fields(kind):
        key, inner = _join(place, field.name), _given(hints_of(kind)[field.name])
        if dataclasses.is_dataclass(inner):
            found += defaults(typing.cast("type", inner), key)
        elif field.default is not dataclasses.MISSING:
            found.append(Setting(key=key, value=plain(field.default), origin=DEFAULT))
        elif field.default_factory is not dataclasses.MISSING:
            found.append(Setting(key=key, value=plain(field.default_factory()), origin=DEFAULT))
    return tuple(found)


@functools.cache
def known_keys(kind: type = Job, place: str = "") -> tuple[str, ...]:
    """Return every dotted key a job may hold, in the order of its sections."""
    found: list[str] = []
    for field in dataclasses.fields(kind):
        key, inner = _join(place, field.name), _given(hints_of(kind)[field.name])
        found += known_keys(typing.cast("type", inner), key) if dataclasses.is_dataclass(inner) else [key]
    return tuple(found)


def from_file(path: Path, origin: str, *, anchor: Path | None = None) -> Layer:
    """Read a TOML file; its relative paths start at `anchor` where one is given.

    Raises:
        ConfigError: the file is missing, is not TOML, or holds an unknown key or a value of another type.

    """
    return _anchored(tuple(_leaves(Job, read_toml(path), "", origin)), anchor)


def from_environment(environment: Mapping[str, str]) -> Layer:
    """Read `EDGEKD_SECTION__KEY` variables; those without a double underscore are not settings."""
    found: list[Setting] = []
    for name in sorted(environment):
        key = name.removeprefix(PREFIX).lower().replace("__", ".")
        if name.startswith(PREFIX) and "." in key:
            found += _assigned(key, environment[name], f"environment {name}")
    return _anchored(tuple(found), Path.cwd())


def from_overrides(overrides: Sequence[str]) -> Layer:
    """Read `section.key=value` from the command line.

    Raises:
        ConfigError: an override is not `key=value`, or its key is unknown, or its value has another type.

    """
    found: list[Setting] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            mend = "write section.key=value, such as search.trials=4"
            raise ConfigError(f"{override!r} is not an override", cause="it has no '='", mend=mend)
        found += _assigned(key.strip(), text.strip(), COMMAND_LINE)
    return _anchored(tuple(found), Path.cwd())


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not TOML; the message names the line.

    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", mend="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read", cause=str(error), mend="give a TOML text file") from error
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        mend = "strings need quotes, and a key stands once in its table"
        raise ConfigError(f"{path} is not valid TOML", cause=_quoting(text, str(error)), mend=mend) from error
    return table


def _quoting(text: str, problem: str) -> str:
    """Add the line that a TOML error is about."""
    _, _, number = problem.partition("(at line ")
    number = number.partition(",")[0]
    lines = text.splitlines()
    if not number.isdigit() or not 0 < int(number) <= len(lines):
        return problem
    return f"{problem}: {lines[int(number) - 1].strip()[:100]}"


def _leaves(kind: type, table: Mapping[str, Any], place: str, origin: str) -> Iterator[Setting]:
    hints = hints_of(kind)
    for name, value in table.items():
        if name not in hints:
            raise _unknown(name, place, list(hints), origin)
        key, inner = _join(place, name), _given(hints[name])
        if not dataclasses.is_dataclass(inner):
            yield Setting(key=key, value=_checked(hints[name], value, key, origin), origin=origin)
        elif isinstance(value, Mapping):
            yield from _leaves(typing.cast("type", inner), value, key, origin)
        else:
            mend = f"write [{key}] and its keys below, one a line"
            raise ConfigError(f"[{key}] must be a table", cause=f"{origin} gives {value!r}"[:200], mend=mend)


def _assigned(key: str, text: str, origin: str) -> Iterator[Setting]:
    kind, place = _kind_at(key, origin)
    if dataclasses.is_dataclass(kind):
        table = _value(dict, text)
        if not isinstance(table, dict):
            mend = f"give one of its keys, such as {known_keys(typing.cast('type', kind), place)[0]}=..."
            raise ConfigError(f"[{place}] is a table", cause=f"{origin} gives {text!r}", mend=mend)
        yield from _leaves(typing.cast("type", kind), table, place, origin)
    else:
        value = _checked(kind, _value(kind, text), place, origin)
        yield Setting(key=place, value=value, origin=origin)


def _kind_at(key: str, origin: str) -> tuple[Any, str]:
    """Return the type that a dotted key holds."""
    kind: Any = Job
    place = ""
    for name in key.split("."):
        inner = _given(kind)
        if typing.get_origin(inner) is dict:
            kind = typing.get_args(inner)[1]
        else:
            hints = hints_of(typing.cast("type", inner)) if dataclasses.is_dataclass(inner) else {}
            if name not in hints:
                raise _unknown(name, place, list(hints), origin)
            kind = hints[name]
        place = _join(place, name)
    return kind, place


def _value(kind: Any, text: str) -> Any:
    """Read a value as TOML; where a string is wanted, a bare word is one."""
    inner = _given(kind)
    if inner is str and not text.startswith(('"', "'")):
        return text
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return _words(inner, text)
    return [value] if typing.get_origin(inner) is tuple and not isinstance(value, list) else value


def _words(inner: Any, text: str) -> Any:
    """Read `a,b` or `[a, b]` as a list where one is wanted."""
    if typing.get_origin(inner) is not tuple:
        return text
    parts = [part.strip() for part in text.removeprefix("[").removesuffix("]").split(",")]
    return [_value(typing.get_args(inner)[0], part) for part in parts if part]


def _checked(kind: Any, value: Any, key: str, origin: str) -> Any:
    try:
        return plain(decode(kind, value, key))
    except ConfigError as error:
        cause = ", ".join(part for part in (error.cause, f"given by {origin}") if part)
        raise ConfigError(error.what, cause=cause, mend=error.mend) from None


def _unknown(name: str, place: str, known: Sequence[str], origin: str) -> ConfigError:
    elsewhere = [key for key in known_keys() if key.endswith(f".{name}")]
    mend = (
        f"did you mean {elsewhere[0]}?"
        if elsewhere
        else did_you_mean(name, known)
        if known
        else f"write {place}=..."
    )
    where = f" in [{place}]" if place else ""
    return ConfigError(f"unknown key {name!r}{where}", cause=f"given by {origin}", mend=mend)


def _anchored(layer: Layer, folder: Path | None) -> Layer:
    """Make values that name a file under `folder` absolute, so that they mean that file everywhere."""
    if folder is None:
        return layer
    return tuple(dataclasses.replace(setting, value=_absolute(setting, folder)) for setting in layer)


def _absolute(setting: Setting, folder: Path) -> Any:
    if setting.key not in _PATHS or not isinstance(setting.value, str):
        return setting.value
    file, colon, function = setting.value.rpartition(":") if setting.key == "teacher.model" else ("", "", "")
    path = folder / Path(file if colon else setting.value).expanduser()
    return f"{path.resolve()}{colon}{function if colon else ''}" if path.exists() else setting.value


def _given(kind: Any) -> Any:
    """Strip `| None`; of a number or a table, take the table, whose keys can be given singly."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        kinds = [inner for inner in typing.get_args(kind) if inner is not type(None)]
        return next((inner for inner in kinds if dataclasses.is_dataclass(inner)), kinds[0])
    return kind


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
