from __future__ import annotations

import math

import pytest

from edgekd.values.layer import Layer, shares, sum_of_layers_ms


def test_shares_are_of_what_was_timed():
    layers = (Layer(name="a", time_ms=3.0), Layer(name="b"), Layer(name="c", time_ms=1.0))
    assert shares(layers) == (0.75, None, 0.25)
    assert sum_of_layers_ms(layers) == 4.0


def test_layers_that_take_nothing_have_no_share_of_nothing():
    assert shares((Layer(name="a", time_ms=0.0),)) == (0.0,)
    assert shares(()) == ()


@pytest.mark.parametrize("time_ms", [-1.0, math.nan, math.inf])
def test_a_time_that_no_clock_gives_is_refused(time_ms: float):
    with pytest.raises(ValueError, match="takes"):
        Layer(name="a", time_ms=time_ms)
