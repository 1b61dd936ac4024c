"""Print what a verb returns: one JSON object, or something to read."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from edgekd.values.codec import plain

if TYPE_CHECKING:
    from rich.console import RenderableType

V = TypeVar("V")

SCHEMA_VERSION = 1
_PIPED_WIDTH = 160  # columns, where stdout is no terminal: a table must not be cut


def show(value: V, readable: Callable[[V], RenderableType], *, as_json: bool) -> None:
    """Print a value to stdout, as JSON or as `readable` lays it out."""
    if as_json:
        show_json(plain(value))
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    Console(width=width, highlight=False).print(readable(value))


def show_json(data: dict[str, Any]) -> None:
    """Print one JSON object with its schema version first; what is not finite becomes null."""
    whole = {"schema_version": SCHEMA_VERSION, **_finite(data)}
    sys.stdout.write(json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def this_command() -> str:
    """Return the command line that is running, as a shell takes it."""
    return shlex.join(["edgekd", *sys.argv[1:]])


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(item) for key, item in data.items()}
    return [_finite(item) for item in data] if isinstance(data, list) else data
