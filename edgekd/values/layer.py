"""The layers that a runtime made of a model, and what each takes by the runtime's own profiler.

Layers are timed one after the other, with a clock read in between, and overlap when nobody looks. Their times rank
layers. Their sum is never a latency: a small engine whose layers added up to 0.41 ms took 0.23 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgekd.values.latency import Latency
from edgekd.values.model import Precision


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One step of a compiled engine."""

    name: str
    kind: str = ""  # the runtime's word: Conv, Convolution, CaskConvolution; empty where only names are known
    output: str = ""  # data type, and memory format where it is known, of its first output
    tactic: str = ""  # the kernel that runs it
    origin: str = ""  # the ONNX nodes it was made of
    time_ms: float | None = (
        None  # a pass: the median, or the mean where a runtime keeps no more; None: untimed
    )

    def __post_init__(self) -> None:
        """Refuse a time that no clock gives; layers come from other machines."""
        if self.time_ms is not None and not (math.isfinite(self.time_ms) and self.time_ms >= 0):
            raise ValueError(f"layer {self.name[:80]!r} takes {self.time_ms} ms")


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """What a file's layers take by the runtime's profiler, and what the file takes when nobody looks."""

    model_sha256: str
    runtime: str
    precision: Precision
    threads: int
    passes: int  # profiled inferences
    layers: tuple[Layer, ...]  # in the order in which they run
    latency: Latency  # of the whole engine, end to end, measured without a profiler

    @property
    def shares(self) -> tuple[float | None, ...]:
        """Each layer's part, 0 to 1, of all layer times; None where it was not timed."""
        return shares(self.layers)

    @property
    def sum_of_layers_ms(self) -> float:
        """The sum of the layers' times, in ms. It is no latency: `latency` is."""
        return sum_of_layers_ms(self.layers)


def sum_of_layers_ms(layers: Sequence[Layer]) -> float:
    """Return the sum of the layers' times, in ms, which no inference takes."""
    return math.fsum(layer.time_ms or 0.0 for layer in layers)


def shares(layers: Sequence[Layer]) -> tuple[float | None, ...]:
    """Return each layer's part, 0 to 1, of all layer times; None where it was not timed."""
    whole = sum_of_layers_ms(layers)
    return tuple(
        None if layer.time_ms is None else (layer.time_ms / whole if whole else 0.0) for layer in layers
    )
