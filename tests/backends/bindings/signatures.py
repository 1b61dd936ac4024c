"""Read the signatures that pybind11 writes into docstrings, and say whether a call fits one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_OPENING, _CLOSING = "[(<{", "])>}"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a bound function."""

    name: str
    kind: str  # its type, without its module; empty where the binding does not say
    optional: bool


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One overload."""

    parameters: tuple[Parameter, ...]  # without `self`
    returns: str  # without its module; empty for nothing

    def refusal(self, positional: Sequence[str | None], keywords: dict[str, str | None]) -> str:
        """Say why a call does not fit; empty where it does. Arguments are given by their types, where known."""
        if len(positional) > len(self.parameters):
            return f"takes {len(self.parameters)} arguments, not {len(positional)}"
        given = dict(zip((one.name for one in self.parameters), positional))
        for name, kind in keywords.items():
            if name not in {one.name for one in self.parameters} or name in given:
                return f"takes no {name!r}"
            given[name] = kind
        for one in self.parameters:
            if one.name not in given and not one.optional:
                return f"needs {one.name!r}"
            kind = given.get(one.name)
            if kind and one.kind and kind != one.kind:
                return f"takes a {one.kind} for {one.name!r}, not a {kind}"
        return ""


def signatures(doc: str, name: str) -> list[Signature]:
    """Return every overload that a docstring lists."""
    lines = re.findall(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\) -> (.*)$", doc, re.MULTILINE)
    return [
        Signature(parameters=tuple(_parameters(inside)), returns=_bare(result)) for inside, result in lines
    ]


def returned(doc: str) -> str:
    """Return the type that a property's getter gives."""
    found = re.search(r"-> (.*)$", doc.strip().splitlines()[0] if doc.strip() else "")
    return _bare(found.group(1)) if found else ""


def _parameters(inside: str) -> Iterator[Parameter]:
    for number, part in enumerate(_split(inside)):
        left, equals, _ = part.partition(" = ")
        name, _, kind = left.partition(":")
        if number == 0 and name.strip() == "self":
            continue
        yield Parameter(name=name.strip(), kind=_bare(kind), optional=bool(equals))


def _split(inside: str) -> Iterator[str]:
    depth, part = 0, ""
    for letter in inside:
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter == "," and depth == 0:
            yield part.strip()
            part = ""
        else:
            part += letter
    if part.strip():
        yield part.strip()


def _bare(kind: str) -> str:
    """Keep the name of a class of TensorRT's; of any other type, nothing."""
    found = re.fullmatch(r"(?:tensorrt\w*\.)+(.*)", kind.strip())
    if found:
        return found.group(1)
    native = re.fullmatch(
        r"nv\w+::(?:\w+::)*I(ParserError)", kind.strip()
    )  # the one that the docstrings leave in C++
    return native.group(1) if native else ""
