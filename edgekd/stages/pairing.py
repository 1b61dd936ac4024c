"""Which layer of one model is which of another: by name where names mean something, else by what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgekd.stages.looking import Seen

# Nodes that hand on what they get, as it is or rounded.
_PASSING = {
    "Cast", "Convert", "DequantizeLinear", "Dropout", "FakeQuantize", "Flatten", "Identity", "QuantizeLinear",
    "Reshape", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
_BUCKETS = 64  # of a sketch: distances come out to about a fifth
_CLOSE = 0.1  # of the norm: the same tensor, int8 included
_SAME_OPERATOR, _SAME_NAME, _NEAR = 0.5, 1.0, 4.0  # beside 1 for a tensor of the same size
_MOST_CELLS = 4_000_000

Pairs = list[tuple[int, int]]


def paired(reference: Sequence[Seen], other: Sequence[Seen]) -> Pairs:
    """Return (place in `reference`, place in `other`) of layers that correspond, in the order of `other`.

    Two ways are tried: equal names of tensors of equal size, and the alignment of both lists that agrees best in sizes,
    operators and values. The one that finds more tensors of nearly the same values is taken; names, where they tie.
    """
    near = _nearness(reference, other)
    by_name = _in_order(_by_name(reference, other))
    aligned = _aligned(reference, other, near)
    if 2 * len(by_name) < len(aligned):  # those of inputs and outputs, or chance
        return aligned
    counts = [sum(near[pair] > 1 - _CLOSE for pair in pairs) for pairs in (by_name, aligned)]
    scale = min(len(reference), len(other))
    # Names win unless values clearly speak against them: a sketch may miss a few.
    return aligned if counts[1] > counts[0] + max(1, scale // 20) else by_name


def _by_name(reference: Sequence[Seen], other: Sequence[Seen]) -> Pairs:
    places = {one.layer.tensor: at for at, one in enumerate(reference)}
    return [
        (places[one.layer.tensor], at)
        for at, one in enumerate(other)
        if one.layer.tensor in places and reference[places[one.layer.tensor]].values.size == one.values.size
    ]


def _in_order(pairs: Pairs) -> Pairs:
    """Return the longest part of the pairs that is in order on both sides (patience sorting, with back links)."""
    tails: list[int] = []  # of the best sequence of each length, its last pair
    before: dict[int, int | None] = {}
    for at, (place, _) in enumerate(pairs):
        keys = [pairs[tail][0] for tail in tails]
        length = int(np.searchsorted(keys, place))
        before[at] = tails[length - 1] if length else None
        tails[length : length + 1] = [at]
    chosen: Pairs = []
    last = tails[-1] if tails else None
    while last is not None:
        chosen.append(pairs[last])
        last = before[last]
    return chosen[::-1]


def _aligned(
    reference: Sequence[Seen], other: Sequence[Seen], near: Mapping[tuple[int, int], float]
) -> Pairs:
    """Align two lists so that the sum of what pairs agree in is largest (Needleman and Wunsch 1970, gaps are free)."""
    own = [at for at, one in enumerate(reference) if one.layer.operator not in _PASSING]
    others = [at for at, one in enumerate(other) if one.layer.operator not in _PASSING]
    if len(own) * len(others) > _MOST_CELLS:
        return []
    worth = np.zeros((len(own) + 1, len(others) + 1))
    gains = np.zeros((len(own), len(others)))
    for i, place in enumerate(own):
        for j, at in enumerate(others):
            gains[i, j] = _gain(reference[place], other[at], near.get((place, at), 0.0))
        row = np.maximum(worth[i, 1:], worth[i, :-1] + np.where(gains[i] > 0, gains[i], -np.inf))
        worth[i + 1, 1:] = np.maximum.accumulate(row)
    pairs: Pairs = []
    i, j = len(own), len(others)
    while i and j:
        if worth[i, j] == worth[i - 1, j]:
            i -= 1
        elif worth[i, j] == worth[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((own[i], others[j]))
    return pairs[::-1]


def _gain(one: Seen, other: Seen, near: float) -> float:
    if one.values.size != other.values.size:
        return 0.0
    same = one.layer.operator.removeprefix("Fused") == other.layer.operator.removeprefix("Fused")
    named = one.layer.tensor == other.layer.tensor
    return 1.0 + _SAME_OPERATOR * same + _SAME_NAME * named + _NEAR * near


def _nearness(reference: Sequence[Seen], other: Sequence[Seen]) -> dict[tuple[int, int], float]:
    """Return 1 - distance / norm, at least 0, of every two tensors of one size, from sketches."""
    found: dict[tuple[int, int], float] = {}
    sizes = {one.values.size for one in reference} & {one.values.size for one in other}
    for size in sizes:
        left = [at for at, one in enumerate(reference) if one.values.size == size]
        right = [at for at, one in enumerate(other) if one.values.size == size]
        signs, buckets = _hashes(size)
        first = np.stack([_sketch(reference[at].values, signs, buckets) for at in left])
        second = np.stack([_sketch(other[at].values, signs, buckets) for at in right])
        norms = np.linalg.norm(first, axis=1)[:, None]
        gaps = np.linalg.norm(first[:, None] - second[None], axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            close = np.clip(1 - gaps / norms, 0.0, 1.0)
        for i, place in enumerate(left):
            for j, at in enumerate(right):
                found[place, at] = float(close[i, j]) if np.isfinite(close[i, j]) else float(gaps[i, j] == 0)
    return found


def _hashes(size: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(size)
    return rng.choice((-1.0, 1.0), size), rng.integers(0, _BUCKETS, size)


def _sketch(
    values: NDArray[np.generic], signs: NDArray[np.float64], buckets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Sum elements with random signs into a few buckets, which keeps distances (Charikar et al. 2002)."""
    flat = np.nan_to_num(values.astype(np.float64).ravel())
    sums: NDArray[np.float64] = np.bincount(buckets, signs * flat, _BUCKETS).astype(np.float64)
    return sums
