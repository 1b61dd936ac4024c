"""The layers that TensorRT made of a model, as its inspector prints them in 10 and in 11."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.errors import BuildError
from edgekd.values.layer import Layer

_MOST_CHARACTERS = 500  # of a name; TensorRT joins the names of all that it fused


def layers_of(text: str, times_ms: Mapping[str, Sequence[float]] | None = None) -> tuple[Layer, ...]:
    """Read the JSON of TensorRT's engine inspector; fields that are not known are left out.

    Args:
        text: `{"Layers": [...]}`, each a name or, where the engine was built with details, an object.
        times_ms: of each layer by its name.

    Raises:
        BuildError: it is no such JSON.

    """
    try:
        entries = json.loads(text)["Layers"]
        return tuple(_layer(entry, times_ms or {}) for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(
            "tensorrt's inspector says nothing of layers", cause=f"{type(error).__name__}: {error}"[:500]
        ) from error


def _layer(entry: Any, times_ms: Mapping[str, Sequence[float]]) -> Layer:
    details: dict[str, Any] = {"Name": entry} if isinstance(entry, str) else entry
    name = str(details["Name"])
    times = times_ms.get(name)
    return Layer(
        name=name[:_MOST_CHARACTERS],
        kind=_text(details, "LayerType"),
        output=_output(details),
        tactic=_text(details, "TacticName"),
        origin=_text(details, "Metadata"),
        time_ms=statistics.median(times) if times else None,
    )


def _output(details: Mapping[str, Any]) -> str:
    """Describe the first output: 10 has one field for type and format, 11 has two."""
    outputs = details.get("Outputs") or [{}]
    first = outputs[0] if isinstance(outputs[0], dict) else {}
    parts = [_text(first, name) for name in ("Format/Datatype", "DataType", "Datatype", "Format")]
    return ", ".join(part for part in parts if part)[:_MOST_CHARACTERS]


def _text(details: Mapping[str, Any], name: str) -> str:
    found = details.get(name, "")
    return found[:_MOST_CHARACTERS] if isinstance(found, str) else ""
