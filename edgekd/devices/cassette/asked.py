"""Orders by content: what makes two of them the same question, and how one is told in words."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from edgekd.values.codec import plain
from edgekd.values.latency import Protocol
from edgekd.values.model import Engine, Precision
from edgekd.values.preprocess import Preprocess

_SHORT = 12  # of a digest's 64 characters
_MOST_TOLD = 4
_DIGEST_CHARS = 64


@dataclass(frozen=True, kw_only=True)
class EngineContent:
    """An engine by content: no paths, no names of files."""

    file: str  # sha256
    weights: str | None
    made_for: Precision
    runtime: str
    precision: Precision
    threads: int
    shapes: dict[str, tuple[int, ...]] | None
    external: tuple[str, ...] = ()  # sha256 of the files of weights, in the order of their names


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An order by content. The seed of a protocol is part of it: pair 7 of a gate is not pair 8."""

    order: str  # the method of `Device`
    engines: tuple[EngineContent, ...] = ()
    protocol: Protocol | None = None
    files: dict[str, str] = field(default_factory=dict)  # input -> sha256
    recipe: Preprocess | None = None
    runtimes: tuple[str, ...] = ()  # that were probed
    seconds: float | None = None  # of each pass that measured energy
    passes: int | None = None  # that timed layers

    @cached_property
    def key(self) -> str:
        """Name the question; engines that are timed together are a set, in whatever order they stand."""
        content = plain(self)
        content["engines"] = sorted(_canonical(engine) for engine in content["engines"])
        return hashlib.sha256(_canonical(content).encode()).hexdigest()

    @property
    def digests(self) -> frozenset[str]:
        """The files that it is about."""
        weights = {engine.weights for engine in self.engines if engine.weights is not None}
        external = {sha256 for engine in self.engines for sha256 in engine.external}
        return frozenset(
            {*self.files.values(), *weights, *external, *(engine.file for engine in self.engines)}
        )

    def __str__(self) -> str:
        """Say it in a few words."""
        subjects = [
            f"{engine.runtime}/{engine.precision.value} of {engine.file[:_SHORT]}" for engine in self.engines
        ]
        subjects += [f"{name} {sha256[:_SHORT]}" for name, sha256 in self.files.items()]
        subjects += self.runtimes
        if self.protocol:
            subjects.append(f"seed {self.protocol.seed}")
        return f"{self.order} ({', '.join(subjects)})" if subjects else self.order


def content_of(engine: Engine) -> EngineContent:
    """Take an engine's content and leave its paths."""
    weights = engine.model.weights
    return EngineContent(
        file=engine.model.file.sha256,
        weights=None if weights is None else weights.sha256,
        made_for=engine.model.precision,
        runtime=engine.runtime,
        precision=engine.precision,
        threads=engine.threads,
        shapes=engine.shapes,
        external=tuple(file.sha256 for file in engine.model.external),
    )


def places_of(engines: Sequence[EngineContent], held: Sequence[EngineContent]) -> list[int]:
    """Return where each of the engines stands among those held; equal ones in their order."""
    left = list(enumerate(held))
    found = []
    for engine in engines:
        at = next(at for at, (_, one) in enumerate(left) if one == engine)
        found.append(left.pop(at)[0])
    return found


def nearest(asked: Asked, held: Sequence[Asked]) -> Asked | None:
    """Return the held question that has most in common with the one asked; None where none is of its kind."""
    alike = [one for one in held if one.order == asked.order]
    own = set(_flat(plain(asked)).items())
    return max(alike, key=lambda one: len(own & set(_flat(plain(one)).items())), default=None)


def differences(asked: Asked, held: Asked) -> str:
    """Say where two questions differ: `protocol.seed is 3 and not 0`."""
    own, other = _flat(plain(asked)), _flat(plain(held))
    apart = [name for name in dict.fromkeys([*own, *other]) if own.get(name) != other.get(name)]
    told = [f"{name} is {_short(own.get(name))} and not {_short(other.get(name))}" for name in apart]
    more = f", and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
    return "; ".join(told[:_MOST_TOLD]) + more


def counted(held: Sequence[Asked]) -> str:
    """Say how many orders of each kind there are."""
    return ", ".join(f"{count} x {order}" for order, count in sorted(Counter(o.order for o in held).items()))


def _canonical(data: object) -> str:
    return json.dumps(data, sort_keys=True, ensure_ascii=False)


def _flat(data: Any, name: str = "") -> dict[str, object]:
    if isinstance(data, dict):
        items = [(f"{name}.{key}" if name else key, item) for key, item in data.items()]
    elif isinstance(data, list):
        items = [(f"{name}[{at}]", item) for at, item in enumerate(data)]
    else:
        return {name: data}
    return {key: one for place, item in items for key, one in _flat(item, place).items()}


def _short(value: object) -> str:
    text = "absent" if value is None else str(value)
    return f"{text[:_SHORT]}…" if len(text) >= _DIGEST_CHARS else text
