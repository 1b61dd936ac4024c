"""Which parts of an int8 file take longer than they did in float, by the runtime's own profiler, and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgekd.values.layer import Layer
from edgekd.values.variant import Blamed, Segment

_CONVERSIONS = re.compile(r"quantizelinear|fakequantize|reorder|reformat|convert|^cast$|scale", re.IGNORECASE)
_INTEGER = re.compile(r"^QLinear|^Q[A-Z]|Integer|(?:^|_)[IU]8$|int8|i8|u8", re.IGNORECASE)
_SUFFIXES = re.compile(r"(_token_\d+|_nchwc|/WithoutBiases|_pre_q)+")


@dataclass(frozen=True, kw_only=True)
class _Spent:
    """What a segment takes in one file, in ms of the profiler's time."""

    own_ms: float = 0.0
    conversions_ms: float = 0.0
    integer: bool = False  # its weighted layer computes with integers

    @property
    def whole_ms(self) -> float:
        return self.own_ms + self.conversions_ms


def blame(
    segments: Sequence[Segment], parent: Sequence[Layer], own: Sequence[Layer]
) -> tuple[tuple[Blamed, ...], dict[str, float]]:
    """Hold the layers of an int8 file against its parent's, segment by segment.

    Layers are told apart by the names that runtimes make of a graph's own; one whose name tells nothing is left out.
    Their times rank segments and are no latencies.

    Args:
        segments: of the float graph.
        parent: layers of the float file.
        own: of the int8 file.

    Returns:
        The segments that lost, the most first, and what each segment saves in ms (below 0: costs).

    """
    before, after = _spent(segments, parent), _spent(segments, own)
    saved = {one.name: before[one.name].whole_ms - after[one.name].whole_ms for one in segments}
    lost = [one for one in segments if saved[one.name] < 0 and after[one.name].own_ms > 0]
    blamed = (
        Blamed(
            segment=one.name,
            kind=one.kind,
            why=_why(before[one.name], after[one.name]),
            float_ms=before[one.name].whole_ms,
            int8_ms=after[one.name].whole_ms,
        )
        for one in lost
    )
    return tuple(sorted(blamed, key=lambda one: -one.lost_ms)), saved


def _why(before: _Spent, after: _Spent) -> str:
    if not after.integer:
        return "it runs in float, between conversions"
    if after.own_ms > before.own_ms:
        return "its int8 kernel is slower"
    return "the conversions around it cost more than it saves"


def _spent(segments: Sequence[Segment], layers: Sequence[Layer]) -> dict[str, _Spent]:
    names = _names(segments)
    found = {one.name: _Spent() for one in segments}
    for layer in layers:
        owner = _owner(layer, names)
        if owner is None or layer.time_ms is None:
            continue
        spent, converts = found[owner], bool(_CONVERSIONS.search(layer.kind or layer.name))
        found[owner] = _Spent(
            own_ms=spent.own_ms + (0.0 if converts else layer.time_ms),
            conversions_ms=spent.conversions_ms + (layer.time_ms if converts else 0.0),
            integer=spent.integer or (not converts and _integer(layer)),
        )
    return found


def _names(segments: Sequence[Segment]) -> dict[str, str]:
    """Map every name of a segment's nodes and tensors to the segment, the longest names first."""
    found = {name: one.name for one in segments for name in (*one.nodes, *one.tensors)}
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))


def _owner(layer: Layer, names: dict[str, str]) -> str | None:
    plain = _SUFFIXES.sub("", layer.name)
    if plain in names:
        return names[plain]
    text = f"{layer.name} {layer.origin}"
    for name, owner in names.items():
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", text):
            return owner
    return None


def _integer(layer: Layer) -> bool:
    return bool(_INTEGER.search(layer.kind) or _INTEGER.search(layer.tactic) or _INTEGER.search(layer.output))
