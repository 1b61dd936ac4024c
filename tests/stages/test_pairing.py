"""Layers of two models find each other by name or by what they compute, and a wrong layer does not mislead them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekd.stages.looking import Seen
from edgekd.stages.pairing import paired
from edgekd.values.watch import GraphLayer

SHAPE = (2, 4, 8, 8)


def layers(*named: tuple[str, str, int]) -> list[Seen]:
    """Give layers as (name, operator, seed of the values)."""
    return [
        Seen(
            layer=GraphLayer(name=name, operator=operator, tensor=name, elements=None),
            values=np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32),
        )
        for name, operator, seed in named
    ]


def names(pairs: Sequence[tuple[int, int]], one: list[Seen], other: list[Seen]) -> list[tuple[str, str]]:
    return [(one[first].layer.name, other[second].layer.name) for first, second in pairs]


def test_equal_names_pair_even_where_every_value_differs():
    one = layers(("a", "Conv", 1), ("b", "Relu", 2), ("c", "Conv", 3))
    other = layers(("a", "Conv", 11), ("b", "Relu", 12), ("c", "Conv", 13))
    assert names(paired(one, other), one, other) == [("a", "a"), ("b", "b"), ("c", "c")]


def test_renamed_layers_pair_by_order_and_operator_after_the_one_that_is_wrong():
    one = layers(("a", "Conv", 1), ("b", "Relu", 2), ("c", "Conv", 3), ("d", "Relu", 4))
    other = layers(("x", "Conv", 1), ("y", "Relu", 2), ("z", "Conv", 93), ("w", "Relu", 94))
    assert names(paired(one, other), one, other) == [("a", "x"), ("b", "y"), ("c", "z"), ("d", "w")]


def test_a_folded_norm_pairs_with_what_it_was_folded_into():
    one = layers(("conv", "Conv", 1), ("norm", "BatchNormalization", 2), ("relu", "Relu", 3))
    other = layers(("c", "Conv", 2), ("r", "Relu", 3))
    assert names(paired(one, other), one, other) == [("norm", "c"), ("relu", "r")]


def test_numbers_that_moved_on_are_no_names():
    """Exporters number their tensors: in a file with one node more, "12" is another tensor."""
    one = layers(*((str(at), "Conv", at) for at in range(10, 18)))
    other = layers(*((str(at + 1), "Conv", at) for at in range(10, 18)))
    assert names(paired(one, other), one, other) == [(str(at), str(at + 1)) for at in range(10, 18)]


def test_what_hands_on_its_input_takes_nobodys_place():
    one = layers(("a", "Conv", 1), ("b", "Conv", 2))
    other = layers(
        ("x", "Conv", 1), ("xq", "QuantizeLinear", 1), ("xd", "DequantizeLinear", 1), ("y", "Conv", 2)
    )
    assert names(paired(one, other), one, other) == [("a", "x"), ("b", "y")]


def test_rounded_values_are_still_near():
    one = layers(("a", "Conv", 1), ("b", "Conv", 2), ("c", "Conv", 3))
    noise = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32) * 0.03
    other = [
        Seen(
            layer=GraphLayer(name=name, operator="Conv", tensor=name, elements=None),
            values=seen.values + noise,
        )
        for name, seen in zip("xz", (one[0], one[2]))
    ]
    assert names(paired(one, other), one, other) == [("a", "x"), ("c", "z")]


def test_tensors_of_no_common_size_do_not_pair():
    one = layers(("a", "Conv", 1))
    other = [
        Seen(layer=GraphLayer(name="x", operator="Conv", tensor="x", elements=None), values=np.ones((2, 3)))
    ]
    assert paired(one, other) == []


def test_tensors_of_zeros_and_of_nan_do_no_harm():
    one, other = (layers(("a", "Conv", 1), ("b", "Relu", 2)) for _ in range(2))
    one[0].values[:], other[0].values[:] = 0.0, np.nan
    assert names(paired(one, other), one, other) == [("a", "a"), ("b", "b")]
