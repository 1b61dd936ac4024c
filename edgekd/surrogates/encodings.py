"""Rows of numbers for architectures that are given as a choice at each position."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError

Floats = NDArray[np.float64]

_CELL_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # of a cell with four nodes, by their end
_CELL_NODES = 4
_CELL_PATHS = ((0, 3), (0, 1, 3), (0, 2, 3), (0, 1, 2, 3))
_NO_EDGE = "none"


def encode(ops: NDArray[np.integer], op_names: Sequence[str]) -> Floats:
    """Return a row for each architecture, (n, positions) -> (n, positions * kinds), position by position.

    Blocks in a row: one column a position and operation, 1 where it is chosen. Cells of six edges (six positions,
    and one operation named `none`; Dong & Yang 2020) have, after the operations of an edge, those again that
    count only where the edge is alive: on a path from the cell's input to its output. Compilers remove the
    others, and eager runtimes do not, so a latency may depend on either.

    Raises:
        DataError: not (n, positions), or an operation has no name.

    """
    chosen = _checked(ops, op_names)
    one_hot = np.eye(len(op_names))[chosen]
    if is_cell(chosen.shape[1], op_names):
        names = list(op_names)
        real = [at for at, name in enumerate(names) if name != _NO_EDGE]
        alive = living_edges(chosen != names.index(_NO_EDGE))
        one_hot = np.concatenate([one_hot, one_hot[:, :, real] * alive[:, :, None]], axis=2)
    return np.asarray(one_hot.reshape(len(chosen), -1), dtype=np.float64)


def encode_paths(ops: NDArray[np.integer], op_names: Sequence[str]) -> Floats:
    """Return which sequences of operations lead from a cell's input to its output: (n, all possible paths).

    One column for each sequence of up to three operations that are not `none` (White et al. 2021, BANANAS,
    section 3.2). Two cells that compute the same through another order of edges share their columns.

    Raises:
        DataError: the architectures are no cells of six edges.

    """
    chosen = _checked(ops, op_names)
    if not is_cell(chosen.shape[1], op_names):
        raise DataError(
            "paths exist in cells only", cause=f"{chosen.shape[1]} positions, no cell of six edges"
        )
    kinds, none = len(op_names), list(op_names).index(_NO_EDGE)
    starts = (0, kinds, kinds + kinds**2)  # of the sequences of one, two and three operations
    found = np.zeros((len(chosen), kinds + kinds**2 + kinds**3))
    for nodes in _CELL_PATHS:
        along = [chosen[:, _CELL_EDGES.index(edge)] for edge in pairwise(nodes)]
        whole = np.all([one != none for one in along], axis=0)
        column = np.zeros(len(chosen), dtype=np.intp)
        for one in along:
            column = column * kinds + one
        found[np.flatnonzero(whole), starts[len(along) - 1] + column[whole]] = 1.0
    return found


def is_cell(positions: int, op_names: Sequence[str]) -> bool:
    """Tell cells of six edges from blocks in a row."""
    return positions == len(_CELL_EDGES) and _NO_EDGE in op_names


def living_edges(present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which edges (n, 6) are on a path from the input to the output, from those that are there."""
    reached = np.zeros((len(present), _CELL_NODES), dtype=bool)
    needed = np.zeros((len(present), _CELL_NODES), dtype=bool)
    reached[:, 0] = needed[:, -1] = True
    for at, (start, end) in enumerate(_CELL_EDGES):  # by their end: what leads to the start was seen
        reached[:, end] |= reached[:, start] & present[:, at]
    for at, (start, end) in sorted(enumerate(_CELL_EDGES), key=lambda one: -one[1][0]):
        needed[:, start] |= needed[:, end] & present[:, at]
    starts, ends = np.array(_CELL_EDGES).T
    return np.asarray(present & reached[:, starts] & needed[:, ends])


def _checked(ops: NDArray[np.integer], op_names: Sequence[str]) -> NDArray[np.intp]:
    found = np.asarray(ops)
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.integer) or not found.size:  # noqa: PLR2004 - a table
        raise DataError(
            "architectures must be a table of whole numbers, (n, positions)",
            cause=f"it is {found.dtype} of shape {found.shape}",
        )
    if int(found.min()) < 0 or int(found.max()) >= len(op_names):
        cause = f"operations {found.min()} to {found.max()}, {len(op_names)} names"
        raise DataError("an architecture has an operation without a name", cause=cause)
    return found.astype(np.intp)
