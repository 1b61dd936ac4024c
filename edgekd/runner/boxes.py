"""Boxes: read from a detector's maps, and cleared of doubles."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS = 8  # places that an edge may have, as logits
REACH = 0.6  # share of the image's side: how far from its cell an edge may lie

_TRIED = 5  # boxes decoded for one that may be given: most are doubles


class Boxes(NamedTuple):
    """Found objects, best first."""

    corners: NDArray[np.float32]  # (n, 4): left, top, right, bottom in shares of the image's sides
    labels: NDArray[np.int64]  # (n,)
    scores: NDArray[np.float32]  # (n,)


def decode_boxes(maps: NDArray[Any], post: Mapping[str, Any], least: float) -> Boxes:
    """Turn a detector's maps into boxes.

    A cell at (x, y) gives one logit a class, and for each edge a distribution over distances: bin b stands for
    reach * (b / (bins - 1))^2, finer near the cell; the edge lies at the mean (Li et al. 2020, Generalized Focal Loss).

    Args:
        maps: (classes + 4 * bins, g, g); one that is not finite holds no boxes.
        post: `bins`, `reach`, `overlap` (of two boxes of a class that are one), `most` (boxes).
        least: score of a box.

    """
    bins, most = int(post["bins"]), int(post["most"])
    classes, side = len(maps) - 4 * bins, maps.shape[-1]
    if not np.isfinite(maps).all():
        return Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    logits = maps[:classes].reshape(classes, -1).astype(np.float32)
    scores = (1 / (1 + np.exp(-np.clip(logits, -60, 60)))).astype(np.float32)
    labels, cells = np.nonzero(scores >= least)
    best = np.argsort(-scores[labels, cells], kind="stable")[: _TRIED * most]
    labels, cells = labels[best], cells[best]
    edges = maps[classes:].reshape(4, bins, -1)[:, :, cells].astype(np.float32)
    found = Boxes(_corners(edges, cells, side, float(post["reach"])), labels, scores[labels, cells])
    kept = suppress_doubles(found, float(post["overlap"]))[:most]
    return Boxes(found.corners[kept], found.labels[kept], found.scores[kept])


def suppress_doubles(found: Boxes, overlap: float) -> NDArray[np.int64]:
    """Return which boxes stay: of a class, none that overlaps a better one by more than `overlap` (greedy NMS).

    Args:
        found: boxes, best first.
        overlap: intersection over union.

    """
    same = found.labels[:, None] == found.labels[None]
    rivals = (overlaps(found.corners, found.corners) > overlap) & same
    alive = np.ones(len(found.scores), np.bool_)
    for at in range(len(alive)):
        if alive[at]:
            alive[at + 1 :] &= ~rivals[at, at + 1 :]
    return np.flatnonzero(alive)


def overlaps(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return intersection over union, (n, m), of boxes (n, 4) and (m, 4); 0 where both are empty."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(np.clip(one[:, 2:] - one[:, :2], 0, None), axis=1) for one in (first, second)]
    whole = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(shared / np.maximum(whole, 1e-12), np.float32)


def _corners(
    edges: NDArray[np.float32], cells: NDArray[np.int64], side: int, reach: float
) -> NDArray[np.float32]:
    """Return (n, 4) from logits (4, bins, n) of cells numbered row by row."""
    powers = np.exp(edges - edges.max(axis=1, keepdims=True))
    steps = reach * np.linspace(0, 1, edges.shape[1], dtype=np.float32) ** 2
    distances = (powers * steps[:, None]).sum(axis=1) / powers.sum(axis=1)
    across, down = (cells % side + 0.5) / side, (cells // side + 0.5) / side
    left, top, right, bottom = distances
    corners = np.stack([across - left, down - top, across + right, down + bottom], axis=1)
    return np.asarray(np.clip(corners, 0, 1), np.float32)
