"""Boxes as labels: padded rows in shares of the image, how they move with it, and mAP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.boxes import Boxes, overlaps

NONE = -1.0  # class of a row that is only padding
COLUMNS = 6  # class, left, top, right, bottom, difficult
_KEPT = 0.4  # share of a box that must stay in the image when it moves; with less it is no object any more
_RIGHT = 0.5  # intersection over union of a box that counts as found

Rows = NDArray[np.float32]  # (N, M, COLUMNS)


def padded(boxes: Sequence[NDArray[np.float32]]) -> Rows:
    """Put the boxes of each image, (m, COLUMNS), into one array, with padding where there are fewer."""
    most = max([1, *(len(one) for one in boxes)])
    rows = np.zeros((len(boxes), most, COLUMNS), np.float32)
    rows[:, :, 0] = NONE
    for at, one in enumerate(boxes):
        rows[at, : len(one)] = one
    return rows


def moved(
    rows: Rows, down: NDArray[np.floating], right: NDArray[np.floating], mirrored: NDArray[np.bool_]
) -> Rows:
    """Move boxes as their images are moved and then mirrored.

    Args:
        rows: labels of n images.
        down: shares of the side, (n,).
        right: likewise.
        mirrored: (n,).

    Returns:
        rows of the same shape: cut at the image's edge, and padding where less than 0.4 of the box is left.

    """
    out = rows.copy()
    shifted = rows[:, :, 1:5] + np.stack([right, down, right, down], axis=1)[:, None].astype(np.float32)
    cut = np.clip(shifted, 0, 1)
    out[:, :, 1:5] = np.where(mirrored[:, None, None], _flipped(cut), cut)
    left_over = _areas(cut) / np.maximum(_areas(shifted), 1e-12)
    out[:, :, 0][left_over < _KEPT] = NONE
    return np.asarray(out)


def mean_average_precision(found: Sequence[Boxes], rows: Rows, classes: int) -> float:
    """Return mAP at IoU 0.5 over the classes that are there; the area under the whole curve (PASCAL VOC from 2010 on).

    Each true box is found once, by the best-scored box that overlaps it most; a difficult one counts neither way.

    Args:
        found: what was found in each image.
        rows: the truth, (N, M, COLUMNS).
        classes: how many there are.

    """
    matches = [_matched(one, truth) for one, truth in zip(found, rows)]
    labels = np.concatenate([one.labels for one in found]) if found else np.zeros(0, np.int64)
    scores = np.concatenate([one.scores for one in found]) if found else np.zeros(0, np.float32)
    verdicts = np.concatenate(matches) if matches else np.zeros(0, np.int64)
    precisions = []
    for number in range(classes):
        objects = int(((rows[:, :, 0] == number) & (rows[:, :, 5] == 0)).sum())
        if objects:
            mine = (labels == number) & (verdicts >= 0)
            order = np.argsort(-scores[mine], kind="stable")
            precisions.append(average_precision(verdicts[mine][order] == 1, objects))
    return float(np.mean(precisions)) if precisions else 0.0


def average_precision(right: NDArray[np.bool_], objects: int) -> float:
    """Return the area under precision over recall.

    Args:
        right: of each found box, best first, whether it is one.
        objects: how many there are to find.

    """
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * right).sum() / objects)


def _matched(found: Boxes, truth: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return of each found box 1 (right), 0 (wrong) or -1 (a difficult object: not judged)."""
    verdicts = np.zeros(len(found.scores), np.int64)
    shared = overlaps(found.corners, truth[:, 1:5])
    taken = np.zeros(len(truth), np.bool_)
    for at in np.argsort(-found.scores, kind="stable"):
        own = np.where(truth[:, 0] == found.labels[at], shared[at], -1)
        best = int(own.argmax())
        if own[best] < _RIGHT:
            continue
        if truth[best, 5]:
            verdicts[at] = -1
        elif not taken[best]:
            taken[best], verdicts[at] = True, 1
    return verdicts


def _flipped(corners: Rows) -> Rows:
    left, top, right, bottom = np.moveaxis(corners, 2, 0)
    return np.stack([1 - right, top, 1 - left, bottom], axis=2)


def _areas(corners: Rows) -> NDArray[np.float32]:
    sides = corners[:, :, 2:] - corners[:, :, :2]
    return np.asarray(np.clip(sides, 0, None).prod(axis=2))
