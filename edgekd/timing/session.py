"""What a model looks like once it is ready to run: the one thing that is timed and inferred with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from edgekd.values.model import Signature

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """One inference, its three parts timed apart on the session's own clock."""

    copy_in_ns: int
    compute_ns: int
    copy_out_ns: int
    outputs: dict[str, NDArray[Any]] = field(repr=False)


class Session(Interface):
    """A compiled model, and the clocks its runtime is timed with."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs; every input dimension is known."""

    @property
    def real_time(self) -> bool:
        """False where the clock is the session's own, so that the machine's load says nothing about it."""

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Run one inference; inputs are copied in and outputs copied out, as an application would."""

    def run_in_parts(self, feeds: Tensors) -> Parts:
        """Run one inference and time its parts; its answers are those of `run`."""

    def clock_ns(self) -> int:
        """Wall time, monotonic."""

    def cpu_clock_ns(self) -> int:
        """CPU time of the threads that do the inference."""

    def throttle_count(self) -> int:
        """Throttle events that the session itself knows of; 0 where only the machine can tell."""


def all_finite(outputs: Tensors) -> bool:
    """Say whether every floating-point output is free of NaN and infinity."""
    return all(np.isfinite(array).all() for array in outputs.values() if array.dtype.kind == "f")
