"""Architectures become rows that say what is computed, and what a compiler would remove."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.errors import DataError
from edgekd.surrogates.encodings import encode, encode_paths, living_edges

CELL = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
CONV = CELL.index("nor_conv_3x3")


def test_blocks_become_one_column_a_position_and_operation():
    rows = encode(np.array([[0, 2], [1, 1]]), ["a", "b", "c"])
    assert rows.tolist() == [[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0]]


def test_an_edge_that_leads_nowhere_is_computed_and_not_alive():
    # 0-1 is a convolution, and nothing leads on from node 1; 0-3 is a skip.
    rows = encode(np.array([[CONV, 0, 0, 1, 0, 0]]), CELL).reshape(6, 9)
    assert rows[0, CONV] == 1
    assert rows[0, 5:].sum() == 0
    assert rows[3, 5 + CELL.index("skip_connect") - 1] == 1


def test_an_edge_that_nothing_reaches_is_dead():
    present = np.array([[False, False, True, True, True, True]])  # nodes 1 and 2 have no input from node 0
    assert living_edges(present).tolist() == [[False, False, False, True, False, False]]


def test_a_whole_cell_is_alive():
    assert living_edges(np.ones((1, 6), dtype=bool)).all()


def test_a_cell_and_its_living_part_lead_the_same_paths():
    rng = np.random.default_rng(0)
    ops = rng.integers(0, len(CELL), (200, 6))
    pruned = np.where(living_edges(ops != 0), ops, 0)
    assert (encode_paths(ops, CELL) == encode_paths(pruned, CELL)).all()
    assert encode_paths(ops, CELL).sum(axis=1).max() == 4


@pytest.mark.parametrize(
    "ops",
    [
        np.array([0, 1]),
        np.array([[0.5, 1.0]]),
        np.array([[0, 3]]),
        np.array([[-1, 0]]),
        np.zeros((0, 2), int),
    ],
)
def test_what_is_no_table_of_named_operations_is_refused(ops: np.ndarray):
    with pytest.raises(DataError):
        encode(ops, ["a", "b", "c"])


def test_blocks_have_no_paths():
    with pytest.raises(DataError, match="cells only"):
        encode_paths(np.array([[0, 1]]), ["none", "b"])
