"""Scales that a tensor's values lose least by: calibration before, or instead of, learning them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from edgekd.errors import DataError, ModelError
from edgekd.values.quantization import Grid, Scheme

_SHARES = 40  # of the full range that are tried
_LEAST_SHARE = 0.2
_MOST_VALUES = 1 << 16  # of a tensor that are tried, evenly spread
_BATCH = 16  # samples at a time: large images have tensors of many megabytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What an activation was on the calibration inputs."""

    least: float  # NaN where a value was
    most: float
    values: Tensor  # some of them


def observed(traced: fx.GraphModule, names: Collection[str], inputs: Tensor) -> dict[str, Seen]:
    """Run a student in floating point; return what the nodes of these names gave."""
    share = max(1, _MOST_VALUES * _BATCH // max(len(inputs), 1))
    watch = _Watch(traced, names, share)
    for start in range(0, len(inputs), _BATCH):
        watch.run(inputs[start : start + _BATCH])
    return {
        name: Seen(
            least=float(torch.stack([one.amin() for one in parts]).amin()),
            most=float(torch.stack([one.amax() for one in parts]).amax()),
            values=torch.cat(parts),
        )
        for name, parts in watch.parts.items()
    }


class _Watch(fx.Interpreter):
    """Keeps, as each node answers, its extremes and an even share of the other values."""

    def __init__(self, traced: fx.GraphModule, names: Collection[str], share: int) -> None:
        super().__init__(traced)
        self._share = share
        self.parts: dict[str, list[Tensor]] = {name: [] for name in names}

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if n.name in self.parts:
            values = found.detach().flatten()
            some = values[:: -(-len(values) // self._share)]
            self.parts[n.name].append(torch.cat([some, values.amin()[None], values.amax()[None]]))
        return found


def weight_scales(weight: Tensor, high: int) -> Tensor:
    """Return the scale (O,) of each output channel of a weight (O, ...) that has the least squared error.

    A dead channel, which is 0 throughout, takes the largest scale of the others.
    """
    rows = weight.detach().flatten(1)
    widest = rows.abs().amax(dim=1) / high
    best, error = widest, torch.full_like(widest, torch.inf)
    for share in torch.linspace(1, _LEAST_SHARE, _SHARES):
        scale = (widest * share).clamp(min=torch.finfo(torch.float32).tiny)
        given = (rows / scale[:, None]).round().clamp(-high, high) * scale[:, None]
        lost = (given - rows).square().sum(dim=1)
        best, error = torch.where(lost < error, scale, best), torch.minimum(lost, error)
    alive = widest > 0
    fallback = best[alive].max() if alive.any() else best.new_tensor(1.0)
    return torch.where(alive, best, fallback)


def activation_grid(name: str, seen: Seen, scheme: Scheme) -> Grid:
    """Return the grid of an activation with the least squared error.

    Raises:
        ModelError: a value is not finite.

    """
    if not (math.isfinite(seen.least) and math.isfinite(seen.most)):
        raise ModelError(
            f"{name} is not finite on the calibration inputs",
            cause="its values cannot be rounded to integers",
            mend="keep the student in float, or look for what overflows in it",
        )
    least, most = min(0.0, seen.least), max(0.0, seen.most)
    if least == most:  # always 0: any scale serves
        return _grid(-1.0, 1.0, scheme) if scheme.symmetric else _grid(0.0, 1.0, scheme)
    grids = [
        _grid(least * share, most * share, scheme)
        for share in torch.linspace(1, _LEAST_SHARE, _SHARES).tolist()
    ]
    return min(grids, key=lambda grid: _squared_error(seen.values, grid))


def refuse_constant(inputs: Tensor) -> None:
    """Refuse calibration inputs that tell nothing.

    Raises:
        DataError: they are not finite, or all the same value.

    """
    mend = "give a few hundred real inputs, prepared exactly as for training"
    if not inputs.isfinite().all():
        raise DataError("the calibration inputs hold NaN or infinity", mend=mend)
    if inputs.numel() == 0 or bool((inputs == inputs.flatten()[0]).all()):
        raise DataError("the calibration inputs are constant", mend=mend)


def _grid(least: float, most: float, scheme: Scheme) -> Grid:
    low, high = scheme.activation_bounds
    if scheme.symmetric:
        scale, zero_point = max(-least / -low, most / high), 0
    else:
        scale = (most - least) / (high - low)
        zero_point = min(high, max(low, low + round(-least / scale)))
    exact = float(torch.tensor(scale, dtype=torch.float32).clamp(min=torch.finfo(torch.float32).tiny))
    return Grid(scales=(exact,), low=low, high=high, zero_point=zero_point)


def _squared_error(values: Tensor, grid: Grid) -> float:
    scale, shift = grid.scales[0], grid.zero_point
    given = (values / scale).round().clamp(grid.low - shift, grid.high - shift) * scale
    return float((given - values).double().square().sum())
