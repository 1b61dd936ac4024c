"""The layers that ONNX Runtime made of a model, as its profiler writes them: Chrome's trace events."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.errors import BuildError
from edgekd.values.layer import Layer

_MOST_BYTES = 512 << 20
_MOST_CHARACTERS = 500  # of a name
_ENDING = "_kernel_time"
_INFERENCE = "model_run"  # one event an inference, after those of its nodes

Key = tuple[str, str, str]  # name, index in its graph, operator: what tells one node from another


def layers_in(path: Path, passes: int) -> tuple[Layer, ...]:
    """Read the last passes of a profile; earlier ones warmed up. Times are whole microseconds there.

    Raises:
        BuildError: it is no such profile, or holds fewer passes.

    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size >> 20} MiB are too many: ask for fewer passes")
        return layers_of(json.loads(path.read_text(encoding="utf-8", errors="replace")), passes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BuildError(
            "onnxruntime's profile cannot be read", cause=f"{type(error).__name__}: {error}"[:500]
        ) from error


def layers_of(events: Sequence[Mapping[str, Any]], passes: int) -> tuple[Layer, ...]:
    """Turn events into layers, in the order in which the last pass ran them.

    Raises:
        ValueError: there are fewer passes, or a time that no clock gives.

    """
    runs = _runs(events)
    if len(runs) < max(1, passes):
        raise ValueError(f"{len(runs)} passes were profiled, not {passes}")
    outputs = {_key(event): _output(event["args"]) for event in events if _is_node(event)}
    counted = runs[len(runs) - passes :] if passes else ()
    return tuple(
        Layer(
            name=key[0][:_MOST_CHARACTERS],
            kind=key[2][:_MOST_CHARACTERS],
            output=outputs[key],
            time_ms=statistics.median(run.get(key, 0.0) for run in counted) if counted else None,
        )
        for key in runs[-1]
    )


def _runs(events: Sequence[Mapping[str, Any]]) -> list[dict[Key, float]]:
    """Collect each pass's time of each node, in ms; a node in a loop runs several times in one pass."""
    runs: list[dict[Key, float]] = []
    run: dict[Key, float] = {}
    for event in events:
        if _is_node(event):
            run[_key(event)] = run.get(_key(event), 0.0) + float(event["dur"]) / 1e3
        elif event["name"] == _INFERENCE:
            runs.append(run)
            run = {}
    return runs


def _is_node(event: Mapping[str, Any]) -> bool:
    return event["cat"] == "Node" and str(event["name"]).endswith(_ENDING)


def _key(event: Mapping[str, Any]) -> Key:
    told = event["args"]
    return str(event["name"]).removesuffix(_ENDING), str(told.get("node_index", "")), str(told["op_name"])


def _output(told: Mapping[str, Any]) -> str:
    """Return the type of the first output: `[{"float": [1, 8, 8, 8]}]` is float."""
    return ", ".join((told.get("output_type_shape") or [{}])[0])[:_MOST_CHARACTERS]
