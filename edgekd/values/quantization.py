"""How tensors are rounded to integers, and which tensors a runtime's kernels want rounded."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.errors import UsageError
from edgekd.values.checkpoint import Checkpoint

_WIDEST = 8  # bits that any integer kernel here takes


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values that a tensor can have: scale * (integer - zero_point), `low` <= integer <= `high`."""

    scales: tuple[float, ...]  # exact in float32: one, or one an output channel of a weight
    low: int
    high: int
    zero_point: int = 0


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What is rounded, and how finely; weights have a scale an output channel and are symmetric."""

    weight_bits: int = 8
    activation_bits: int = 8
    symmetric: bool = False  # activations have a zero point of 0 and are signed, as TensorRT takes them
    everywhere: bool = True  # every tensor between layers, and biases to int32; else what weights multiply
    learned: bool = True  # scales are trained with the weights (LSQ, Esser et al. 2020); else as calibrated

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            if not 2 <= getattr(self, name) <= _WIDEST:  # noqa: PLR2004 - one bit has no 0 and two signs
                raise UsageError(
                    f"{name} must lie between 2 and {_WIDEST}", cause=f"it is {getattr(self, name)}"
                )

    @property
    def weight_bounds(self) -> tuple[int, int]:
        """The least and the largest integer of a weight; as many below 0 as above."""
        most = 2 ** (self.weight_bits - 1) - 1
        return -most, most

    @property
    def activation_bounds(self) -> tuple[int, int]:
        """The least and the largest integer of an activation."""
        half = 2 ** (self.activation_bits - 1)
        return (-half, half - 1) if self.symmetric else (0, 2 * half - 1)


@dataclass(frozen=True, kw_only=True)
class QuantizedCheckpoint:
    """Weights of a folded student that was distilled on its grids, and the grids."""

    checkpoint: Checkpoint  # its accuracy is that of the simulated integer arithmetic
    scheme: Scheme
    grids: dict[str, Grid]  # by tensor of the exported graph: weights by parameter, activations by node
