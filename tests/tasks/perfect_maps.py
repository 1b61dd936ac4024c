"""Maps of answers that say exactly what the labels say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.boxes import BINS, REACH


def of_boxes(rows: NDArray[np.float32], classes: int, side: int) -> NDArray[np.float32]:
    """Return (N, classes + 4 * BINS, side, side): each box is found by the cell that its middle lies in."""
    maps = np.full((len(rows), classes + 4 * BINS, side, side), -9, np.float32)
    for image, truth in zip(maps, rows):
        for label, *corners, _ in truth:
            if label >= 0:
                _say(image, int(label), corners, classes)
    return maps


def of_masks(masks: NDArray[np.uint8], classes: int) -> NDArray[np.float32]:
    """Return (N, classes, g, g) of masks of squares of 4 x 4 pixels; 255 is said to be class 0."""
    small = masks[:, ::4, ::4].astype(np.int64)
    small[small == 255] = 0
    return np.eye(classes, dtype=np.float32)[small].transpose(0, 3, 1, 2)


def _say(image: NDArray[np.float32], label: int, corners: Sequence[float], classes: int) -> None:
    side = image.shape[-1]
    left, top, right, bottom = corners
    column, row = (min(int(side * at), side - 1) for at in ((left + right) / 2, (top + bottom) / 2))
    across, down = (column + 0.5) / side, (row + 0.5) / side
    image[label, row, column] = 9
    for edge, distance in enumerate((across - left, down - top, right - across, bottom - down)):
        image[classes + BINS * edge : classes + BINS * (edge + 1), row, column] = _bins(distance)


def _bins(distance: float) -> NDArray[np.float32]:
    """Return logits whose mean distance is this one, of the two bins around it."""
    steps = REACH * np.linspace(0, 1, BINS) ** 2
    place = int(np.clip(np.searchsorted(steps, distance) - 1, 0, BINS - 2))
    share = np.clip((distance - steps[place]) / (steps[place + 1] - steps[place]), 1e-6, 1 - 1e-6)
    logits = np.full(BINS, -30.0, np.float32)
    logits[place : place + 2] = np.log([1 - share, share])
    return logits
