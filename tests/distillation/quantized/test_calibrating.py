from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx, nn

from edgekd.distillation.quantized.calibrating import (
    Seen,
    activation_grid,
    observed,
    refuse_constant,
    weight_scales,
)
from edgekd.errors import DataError, ModelError
from edgekd.values.quantization import Grid, Scheme


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def grid_of(values: Tensor, scheme: Scheme | None = None, name: str = "a") -> Grid:
    seen = Seen(least=float(values.min()), most=float(values.max()), values=values)
    return activation_grid(name, seen, scheme or Scheme())


def lost(values: Tensor, grid: Grid) -> float:
    low, high = grid.low - grid.zero_point, grid.high - grid.zero_point
    given = (values / grid.scales[0]).round().clamp(low, high) * grid.scales[0]
    return float((given - values).square().mean())


def test_a_weight_s_scales_lose_no_more_than_its_largest_values_would_at_any_bits():
    weight = draw(8, 3, 3, 3)
    for high in (1, 3, 7, 127):
        scales = weight_scales(weight, high)
        widest = weight.flatten(1).abs().amax(dim=1) / high
        errors = [
            ((weight.flatten(1) / s[:, None]).round().clamp(-high, high) * s[:, None] - weight.flatten(1))
            .square()
            .sum()
            for s in (scales, widest)
        ]
        assert errors[0] <= errors[1]
        assert (scales <= widest * 1.0001).all()


def test_a_dead_channel_takes_a_scale_that_divides():
    weight = draw(4, 5)
    weight[2] = 0
    scales = weight_scales(weight, 127)
    assert scales[2] == scales[[0, 1, 3]].max() > 0
    assert weight_scales(torch.zeros(4, 5), 127).tolist() == [1, 1, 1, 1]


def test_a_channel_of_denormal_weights_has_a_scale_above_zero():
    scales = weight_scales(torch.full((2, 3), 1e-42), 127)
    assert (scales > 0).all()


def test_an_activation_that_is_never_negative_has_a_zero_point_of_zero():
    grid = grid_of(draw(1000).relu())
    assert (grid.zero_point, grid.low, grid.high) == (0, 0, 255)


def test_a_signed_activation_has_zero_on_its_grid():
    values = draw(1000) + 0.7
    grid = grid_of(values)
    assert 0 < grid.zero_point < 255
    assert lost(values, grid) < 1e-3


def test_a_symmetric_scheme_has_no_zero_point_and_keeps_both_ends():
    values = torch.tensor([-1.0, 3.0]).repeat(50)
    grid = grid_of(values, Scheme(symmetric=True))
    assert (grid.zero_point, grid.low, grid.high) == (0, -128, 127)
    assert grid.scales[0] * grid.high == pytest.approx(3.0, rel=1e-2)


def test_few_bits_cut_off_rare_large_values():
    values = torch.cat([draw(10_000), torch.tensor([40.0])])
    grid = grid_of(values, Scheme(activation_bits=3, symmetric=True))
    assert grid.scales[0] * grid.high < 20


def test_an_activation_that_is_always_zero_has_a_grid_all_the_same():
    for symmetric in (False, True):
        grid = grid_of(torch.zeros(100), Scheme(symmetric=symmetric))
        assert grid.scales[0] > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_activation_that_is_not_finite_is_named(bad: float):
    values = draw(100)
    values[7] = bad
    with pytest.raises(ModelError, match=r"stages\.0\.relu\.out is not finite on the calibration inputs"):
        grid_of(values, name="stages.0.relu.out")


def test_inputs_that_are_constant_or_not_finite_are_refused():
    refuse_constant(draw(4, 3))
    for inputs, words in (
        (torch.ones(4, 3), "constant"),
        (torch.empty(0, 3), "constant"),
        (draw(4) / 0, "infinity"),
    ):
        with pytest.raises(DataError, match=words):
            refuse_constant(inputs)


def test_observing_keeps_the_extremes_of_all_samples_and_an_even_share_of_the_others():
    traced = fx.symbolic_trace(nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)))
    inputs = draw(40, 70_000)
    inputs[39, 123], inputs[7, 3] = 99.0, -99.0
    seen = observed(traced, ("_0",), inputs)["_0"]
    assert (seen.least, seen.most) == (-99.0, 99.0)
    assert 60_000 < len(seen.values) < 80_000
    assert abs(seen.values.std() - 1) < 0.4
    inputs[20, 5] = float("nan")
    assert math.isnan(observed(traced, ("_0",), inputs)["_0"].least)
