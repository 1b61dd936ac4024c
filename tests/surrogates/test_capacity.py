"""What architectures of a table amount to: dead edges count for nothing, and names tell arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.surrogates.capacity import amounts, arithmetic_of, belief

NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NONE, SKIP, SMALL, LARGE, POOL = range(5)
DEAD = [NONE] * 6
UNREACHED = [NONE, NONE, LARGE, SKIP, LARGE, NONE]  # nothing leads to node 1, so its edges are dead
CHAIN = [LARGE, NONE, LARGE, NONE, NONE, LARGE]
RESIDUAL = [LARGE, NONE, LARGE, SKIP, NONE, LARGE]
POOLED = [POOL, NONE, LARGE, SKIP, NONE, LARGE]


@pytest.mark.parametrize(
    ("name", "arithmetic"),
    [
        ("nor_conv_3x3", 9),
        ("nor_conv_1x1", 1),
        ("none", 0),
        ("skip_connect", 0),
        ("avg_pool_3x3", 0),
        ("k5_e3", 75),
    ],
)
def test_a_name_tells_the_arithmetic(name: str, arithmetic: float) -> None:
    assert arithmetic_of(name) == arithmetic


def test_what_is_on_no_path_counts_for_nothing() -> None:
    found = amounts(np.array([DEAD, UNREACHED, CHAIN]), NAMES)
    assert found.arithmetic.tolist() == [0, 0, 27]
    assert found.depth.tolist() == [0, 0, 3]
    assert found.residual.tolist() == [0, 1, 0]


def test_a_cell_that_computes_nothing_is_believed_in_least_and_a_residual_one_most() -> None:
    cells = np.array([DEAD, UNREACHED, CHAIN, RESIDUAL, POOLED])
    believed = belief(amounts(cells, NAMES), np.array([0.003, 1.0, 4.0, 4.0, 4.0]))
    assert np.argsort(-believed).tolist() == [3, 2, 4, 1, 0]


def test_a_latency_near_zero_does_not_outweigh_everything() -> None:
    cells = np.array([DEAD, UNREACHED, CHAIN, RESIDUAL, POOLED])
    found = amounts(cells, NAMES)
    near, nearer = (belief(found, np.array([least, 1.0, 4.0, 4.0, 4.0])) for least in (1e-3, 1e-30))
    assert near == pytest.approx(nearer)


def test_blocks_in_a_row_are_counted_where_there_is_no_cell() -> None:
    found = amounts(np.array([[0, 1, 2], [2, 2, 2]]), ("k3_e1", "k3_e6", "skip"))
    assert found.arithmetic.tolist() == [63, 0]
    assert found.depth.tolist() == [2, 0]
    assert found.numbers.shape == (2, 4)
