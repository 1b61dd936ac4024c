"""Grids whose scales can be learned: one of an activation, one for each output channel of a weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekd.distillation.quantized.calibrating import weight_scales
from edgekd.distillation.quantized.rounding import Carried, Term, on_grid, rounded, tempered
from edgekd.values.quantization import Grid, Scheme

_LARGEST_BIAS = 2.0**30  # of an int32 bias: what is summed on top of it has the other half


class ActivationGrid(nn.Module):
    """The grid of one activation. The logarithm of its scale is learned, so that a scale stays above 0."""

    zero_point: Tensor

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.low, self.high = scheme.activation_bounds
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=scheme.learned)
        # An integer, so that the average of the weights leaves it alone.
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def set(self, grid: Grid) -> None:
        """Take a calibrated scale and zero point."""
        self.log_scale.copy_(torch.tensor(grid.scales[0]).log())
        self.zero_point.fill_(grid.zero_point)

    @torch.no_grad()
    def recorded(self) -> Grid:
        """Return the grid as it is now."""
        scale = float(self.log_scale.exp())
        return Grid(scales=(scale,), low=self.low, high=self.high, zero_point=int(self.zero_point))

    def forward(self, carried: Carried) -> Carried:
        """Round a tensor to the grid."""
        scale = tempered(self.log_scale.exp(), carried.terms[0].numbers.numel(), self.high)
        integers = on_grid(carried, scale, self.low - self.zero_point, self.high - self.zero_point)
        return Carried(terms=(Term(integers, scale),))


class WeightGrid(nn.Module):
    """The grids of the output channels of one weight (O, ...)."""

    def __init__(self, outputs: int, scheme: Scheme) -> None:
        super().__init__()
        self.low, self.high = scheme.weight_bounds
        self.log_scales = nn.Parameter(torch.zeros(outputs), requires_grad=scheme.learned)

    @torch.no_grad()
    def set(self, weight: Tensor) -> None:
        """Take the scales that a weight loses least by."""
        self.log_scales.copy_(weight_scales(weight, self.high).log())

    @torch.no_grad()
    def recorded(self, bias: Tensor | None, input_scale: Tensor) -> Grid:
        """Return the grid as it is now; the arguments are those of `scales`."""
        scales = self.scales(bias, input_scale)
        return Grid(scales=tuple(scales.tolist()), low=self.low, high=self.high)

    def scales(self, bias: Tensor | None, input_scale: Tensor) -> Tensor:
        """Return the scales (O,), raised where a bias (O,) would not fit into int32.

        A bias is held in units of the input's scale times the channel's; in a channel whose weights are all but 0
        the units would be too small for it.
        """
        scales = self.log_scales.exp()
        if bias is None:
            return scales
        return torch.maximum(scales, bias.detach().abs() / (input_scale.detach() * _LARGEST_BIAS))

    def forward(self, weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Return the integers of a weight, and the scales with the gradient that they learn by."""
        scales = tempered(scales, weight[0].numel(), self.high)
        along = scales.view(-1, *[1] * (weight.ndim - 1))
        return rounded((weight / along).clamp(self.low, self.high)), scales
