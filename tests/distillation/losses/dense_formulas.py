"""The losses of dense tasks against labels, written out once more in numpy, cell by cell and pixel by pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax

Array = NDArray[np.float64]

BINS, REACH = 8, 0.6
STEPS = np.array([REACH * (b / (BINS - 1)) ** 2 for b in range(BINS)])


def masks(s: Array, t: Array, y: Array) -> float:
    """Cross-entropy and soft Dice of maps enlarged between the middles of their pixels."""
    classes = s.shape[1]
    entropy, count = 0.0, 0
    shared, both, there = np.zeros(classes), np.zeros(classes), np.zeros(classes)
    for maps, mask in zip(s, t.astype(int)):
        for row, column in np.argwhere(mask != 255):
            logits = between(maps, (row + 0.5) / mask.shape[0], (column + 0.5) / mask.shape[1])
            given, label = softmax(logits), mask[row, column]
            entropy -= log_softmax(logits)[label]
            count += 1
            both += given
            both[label] += 1
            there[label] += 1
            shared[label] += given[label]
    found = there > 0
    return entropy / count + 1 - (2 * shared[found] / both[found]).mean()


def between(maps: Array, down: float, across: float) -> Array:
    """Interpolate maps (C, h, w) at a place in shares of their sides."""
    heights, widths = maps.shape[1:]
    y = min(max(down * heights - 0.5, 0), heights - 1)
    x = min(max(across * widths - 0.5, 0), widths - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, heights - 1), min(left + 1, widths - 1)
    upper = (1 - (x - left)) * maps[:, top, left] + (x - left) * maps[:, top, right]
    lower = (1 - (x - left)) * maps[:, bottom, left] + (x - left) * maps[:, bottom, right]
    return (1 - (y - top)) * upper + (y - top) * lower


def boxes(s: Array, t: Array, y: Array) -> float:
    """Quality focal loss, GIoU and distribution focal loss; centre sampling of 1.5 cells, the smallest box first."""
    classes, side = s.shape[1] - 4 * BINS, s.shape[2]
    quality, positives, located, weights = 0.0, 0, 0.0, 0.0
    for maps, truth in zip(s, t):
        for row in range(side):
            for column in range(side):
                scores = expit(maps[:classes, row, column])
                target = np.zeros(classes)
                at = (column + 0.5) / side, (row + 0.5) / side
                box = owner(truth, at, side)
                if box is not None:
                    edges = maps[classes:, row, column].reshape(4, BINS)
                    target[int(box[0])], giou = fits(edges, at, box[1:5])
                    positives += 1
                    weights += scores.max()
                    located += scores.max() * (2 * (1 - giou) + 0.25 * between_bins(edges, at, box[1:5]))
                entropy = -(target * np.log(scores) + (1 - target) * np.log(1 - scores))
                quality += (entropy * (target - scores) ** 2).sum()
    return quality / positives + located / weights


def owner(truth: Array, at: tuple[float, float], side: int) -> Array | None:
    mine = []
    for box in truth:
        left, top, right, bottom = box[1:5]
        middle = (left + right) / 2, (top + bottom) / 2
        inside = left < at[0] < right and top < at[1] < bottom
        near = all(abs(a - m) < 1.5 / side for a, m in zip(at, middle))
        home = all(int(a * side) == int(m * side) for a, m in zip(at, middle))
        if box[0] >= 0 and not box[5] and ((inside and near) or home):
            mine.append(box)
    return min(mine, key=lambda box: (box[3] - box[1]) * (box[4] - box[2]), default=None)


def fits(edges: Array, at: tuple[float, float], box: Array) -> tuple[float, float]:
    """Return IoU and GIoU of the box that a cell's edges give."""
    left, top, right, bottom = (softmax(edge) @ STEPS for edge in edges)
    mine = [at[0] - left, at[1] - top, at[0] + right, at[1] + bottom]
    width = max(0, min(mine[2], box[2]) - max(mine[0], box[0]))
    height = max(0, min(mine[3], box[3]) - max(mine[1], box[1]))
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (mine, box)]
    whole = sum(areas) - width * height
    hull = (max(mine[2], box[2]) - min(mine[0], box[0])) * (max(mine[3], box[3]) - min(mine[1], box[1]))
    return width * height / whole, width * height / whole - (hull - whole) / hull


def between_bins(edges: Array, at: tuple[float, float], box: Array) -> float:
    distances = [at[0] - box[0], at[1] - box[1], box[2] - at[0], box[3] - at[1]]
    total = 0.0
    for edge, distance in zip(edges, distances):
        place = np.sqrt(np.clip(distance, 0, REACH) / REACH) * (BINS - 1)
        below = min(int(place), BINS - 2)
        logs = log_softmax(edge)
        total -= (1 - (place - below)) * logs[below] + (place - below) * logs[below + 1]
    return total / 4
