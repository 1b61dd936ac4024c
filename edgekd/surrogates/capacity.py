"""What architectures of a table amount to before anything is trained: numbers, choices, and a belief."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekd.surrogates.accuracy import Encoded, Floats, encoded, standard
from edgekd.surrogates.encodings import is_cell, living_edges

_PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))  # edges of a cell of four nodes, from its input to its output
_IDLE = ("none", "zero", "skip", "identity")
_POOLS = ("pool",)
_DEPTH, _LATENCY, _RESIDUAL, _WEIGHTLESS = 0.5, 0.5, 0.3, 0.3  # of the belief, a standard deviation each
_LEAST = 0.05  # of the median latency: below it lie networks that compute nothing


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """Architectures in numbers: (n, ...) each."""

    numbers: Floats  # operations that count, by kind; for cells also what their paths are like
    choices: Floats  # one-hot, position by position; for cells again, of the edges that are alive
    arithmetic: Floats  # kernel areas times expansions, summed
    depth: Floats  # operations with weights in a row, at most
    residual: Floats  # 1 where a path without arithmetic leads through
    weightless: Floats  # operations that compute and learn nothing, such as pooling
    positions: int


def amounts(ops: NDArray[np.integer], op_names: Sequence[str]) -> Amounts:
    """Return what architectures (n, positions) amount to.

    In cells, what is on no path from the input to the output counts for nothing.
    """
    chosen = np.asarray(ops).astype(np.intp)
    positions, kinds = chosen.shape[1], len(op_names)
    areas = np.array([arithmetic_of(name) for name in op_names])
    pools = np.array([any(word in name.lower() for word in _POOLS) for name in op_names])
    one_hot = np.eye(kinds)[chosen]
    cell = is_cell(positions, op_names)
    living = (
        living_edges(chosen != list(op_names).index("none")) if cell else np.ones(chosen.shape, dtype=bool)
    )
    counts = (one_hot * living[:, :, None]).sum(axis=1)
    heavy = areas[chosen] * living
    if cell:
        paths = _paths(chosen, living, areas, pools)
        numbers = np.concatenate([paths, counts], axis=1)
        depth, residual = paths[:, 0], (paths[:, -1] > 0).astype(np.float64)
        one_hot = np.concatenate([one_hot, one_hot * living[:, :, None]], axis=2)
    else:
        numbers = np.concatenate([counts, np.log1p(heavy.sum(axis=1))[:, None]], axis=1)
        depth, residual = (heavy > 0).sum(axis=1).astype(np.float64), np.zeros(len(chosen))
    return Amounts(
        numbers=numbers, choices=one_hot.reshape(len(chosen), -1), arithmetic=heavy.sum(axis=1), depth=depth,
        residual=residual, weightless=(pools[chosen] & living).sum(axis=1).astype(np.float64), positions=positions,
    )  # fmt: skip


def belief(found: Amounts, latency_ms: Floats) -> Floats:
    """Return how accurate each is expected to be against the others, before anything was trained.

    Arithmetic and depth first, and time spent on the target, for a budget is there to be used; a path that
    leads through without arithmetic helps (He et al. 2016, section 3), what has no weights learns nothing.
    """
    spent = np.log(np.maximum(latency_ms, _LEAST * np.median(latency_ms)))
    weighed = (
        (1.0, np.log1p(found.arithmetic)),
        (_DEPTH, found.depth),
        (_LATENCY, spent),
        (_RESIDUAL, found.residual),
        (-_WEIGHTLESS, found.weightless),
    )
    return np.asarray(sum(weight * standard(column) for weight, column in weighed))


def candidates(found: Amounts, believed: Floats, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Encoded:
    """Return some architectures as the accuracy surrogate takes them."""
    return encoded(found.numbers[rows], found.choices[rows], believed[rows], positions=found.positions)


def arithmetic_of(name: str) -> float:
    """Return the kernel area, times the expansion, that an operation's name tells: `nor_conv_3x3` 9, `k5_e3` 75."""
    low = name.lower()
    if any(word in low for word in (*_IDLE, *_POOLS)):
        return 0.0
    side = re.search(r"(\d+)x\1", low) or re.search(r"k(\d+)", low)
    expansion = re.search(r"e(\d+)(?!\d*x)", low)
    return (float(side.group(1)) ** 2 if side else 1.0) * (float(expansion.group(1)) if expansion else 1.0)


def _paths(
    chosen: NDArray[np.intp], living: NDArray[np.bool_], areas: Floats, pools: NDArray[np.bool_]
) -> Floats:
    """Return what a cell's paths hold, (n, 11): most, fewest and mean of three kinds; paths; idle paths.

    The kinds are operations with weights, the heaviest of these, and pooling.
    """
    kinds = np.stack([areas > 0, (areas > 0) & (areas == areas.max()), pools]).astype(np.float64)
    along = np.stack([kinds[:, chosen[:, list(path)]].sum(axis=2) for path in _PATHS])  # (paths, kinds, n)
    # An edge of a cell is alive where any path through it is; a path is there where all its edges are.
    there = np.stack([living[:, list(path)].all(axis=1) for path in _PATHS])[:, None]  # (paths, 1, n)
    many = there.sum(axis=0)
    most = np.where(there, along, 0.0).max(axis=0)
    fewest = np.where(there, along, np.inf).min(axis=0)
    mean = np.where(there, along, 0.0).sum(axis=0) / np.maximum(many, 1)
    idle = (there[:, 0] & (along.sum(axis=1) == 0)).sum(axis=0)
    parts = [most, np.where(np.isfinite(fewest), fewest, 0.0), mean, many, idle[None]]
    return np.asarray(np.concatenate(parts).T, dtype=np.float64)
