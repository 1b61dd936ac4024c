from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edgekd.values.codec import decode, fingerprint, plain
from edgekd.values.variant import Exchange, Loss, Method, Operators, Quantization, Ranges, Tolerance

SAME = Loss(divergence=1e-4, changed=0.0, drop=0.0, samples=1000)


def test_a_quantization_names_what_departs_from_its_methods_default():
    how = Quantization(
        method=Method.STATIC,
        ranges=Ranges.PERCENTILE,
        per_channel=False,
        operators=Operators.WEIGHTED,
        kept=("a", "b"),
    )
    assert how.name == "static, percentile, a scale a tensor, weighted, 2 nodes float"
    assert Quantization(method=Method.NNCF, symmetric=True).name == "nncf"
    assert Quantization(method=Method.NNCF).name == "nncf, asymmetric"


def test_ranges_are_no_part_of_what_latency_hangs_on():
    one = Quantization(method=Method.STATIC, kept=("a",))
    assert replace(one, ranges=Ranges.ENTROPY).structure == one
    assert replace(one, kept=()).structure != one


def test_a_quantization_travels_and_names_itself_by_content():
    how = Quantization(method=Method.STATIC, ranges=Ranges.ENTROPY, kept=("a",))
    assert decode(Quantization, plain(how)) == how
    assert fingerprint(how) != fingerprint(replace(how, kept=()))


@pytest.mark.parametrize(
    ("loss", "allowed"),
    [
        (SAME, True),
        (replace(SAME, drop=0.002), False),
        (replace(SAME, drop=-0.01), True),
        (replace(SAME, changed=0.02), False),
        (replace(SAME, divergence=math.inf), False),
        (replace(SAME, changed=1 / 50, samples=50), True),  # one label of fifty is one label
        (replace(SAME, changed=2 / 50, samples=50), False),
        (Loss(divergence=0.5, changed=None, drop=None, samples=10), False),
        (Loss(divergence=1e-3, changed=None, drop=None, samples=10), True),
    ],
)
def test_a_loss_passes_by_what_is_known_of_it(loss: Loss, *, allowed: bool):
    assert Tolerance().allows(loss) is allowed


def test_points_are_of_the_best_measure_there_is():
    assert replace(SAME, drop=0.01).points == pytest.approx(1.0)
    assert replace(SAME, drop=None, changed=0.02).points == pytest.approx(2.0)
    assert replace(SAME, drop=None, changed=None, divergence=0.03).points == pytest.approx(3.0)


def test_an_exchange_rate_is_ms_a_point_and_none_where_nothing_was_regained():
    one = Exchange(kept=("a",), before_ms=1.0, after_ms=1.2, before_points=0.5, after_points=0.1)
    assert one.ms_per_point == pytest.approx(0.5)
    assert replace(one, after_points=0.5).ms_per_point is None
