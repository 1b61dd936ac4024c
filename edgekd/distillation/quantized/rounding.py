"""The arithmetic of integer kernels, on integers held in floating point, with gradients straight through.

A tensor is carried as a sum of numbers times factors: integers times the product of their scales, or floats. It is
rounded to a grid as the runtimes' kernels do it: the factors are divided by the grid's scale and multiplied with the
integers, the sum is rounded half to even and clamped. Floats are divided by the scale, as QuantizeLinear does.
Integers are held less their zero point, so that products need no correction and a convolution pads with 0.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

EXACT = 2**24  # integers up to it are exact in float32


class Term(NamedTuple):
    """Numbers, and what they are multiplied by; None: 1."""

    numbers: Tensor
    factor: Tensor | None = None

    @property
    def real(self) -> Tensor:
        """The product."""
        return self.numbers if self.factor is None else self.numbers * self.factor


class Carried(NamedTuple):
    """A sum of terms, with what is below 0 set to 0 where it is rectified."""

    terms: tuple[Term, ...]
    rectified: bool = False

    @property
    def real(self) -> Tensor:
        """The tensor in floating point."""
        total = functools.reduce(torch.add, [term.real for term in self.terms])
        return total.clamp(min=0) if self.rectified else total


def on_grid(carried: Carried, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the integers, less the grid's zero point, that a tensor is rounded to.

    Args:
        carried: the tensor.
        scale: of the grid.
        low: the least integer, less the zero point.
        high: the largest, less the zero point.

    """
    parts = [
        numbers / scale if factor is None else numbers * (factor / scale) for numbers, factor in carried.terms
    ]
    least = low.clamp(min=0) if carried.rectified else low
    return rounded(functools.reduce(torch.add, parts).clamp(least, high))


def rounded(tensor: Tensor) -> Tensor:
    """Round half to even; gradients pass as if nothing were rounded."""
    return _Rounded.apply(tensor)  # type: ignore[no-any-return, no-untyped-call]


def tempered(scale: Tensor, numbers: int, high: int) -> Tensor:
    """Return a scale whose gradient is divided by sqrt(numbers * high) (LSQ, Esser et al. 2020, section 2.2)."""
    share = 1 / math.sqrt(max(1, numbers * high))
    return scale.detach() + (scale - scale.detach()) * share


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return tensor.round()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient
