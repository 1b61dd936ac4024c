"""Built-in scenes: scikit-learn's handwritten digits, enlarged and scattered over a noisy ground, with boxes and masks.

Digits of the test scenes are in no other scene, nor are those of the validation scenes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekd.tasks.boxes import COLUMNS
from edgekd.tasks.datasets import digits

SIDE = 64  # pixels of a scene
COUNTS = (1200, 200, 400)  # scenes for training, validation and test
_SHARES = (0.6, 0.75)  # of the digits: up to here for training, up to there for validation
_SEED = 20
_TRIES = 20  # places tried for a digit before it is left out
_INK = 90  # brightness from which a pixel of an enlarged digit belongs to it


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Grey images with what is in them."""

    images: NDArray[np.uint8]  # (N, SIDE, SIDE, 1)
    boxes: list[NDArray[np.float32]]  # an image: (m, COLUMNS), in shares of the side
    masks: NDArray[np.uint8]  # (N, SIDE, SIDE): 0 ground, 1 + digit
    classes: tuple[str, ...]  # of boxes; masks have the ground before them
    roles: NDArray[np.int64]  # (N,): 0 train, 1 validation, 2 test


def digit_scenes(*, most: int, sides: tuple[int, int], counts: tuple[int, int, int] = COUNTS) -> Scenes:
    """Draw scenes, always the same ones.

    Args:
        most: digits in a scene; there is at least one.
        sides: of a digit in pixels, the smallest and the largest.
        counts: scenes for training, validation and test.

    """
    source = digits()
    rng = np.random.Generator(np.random.Philox(key=_SEED))
    bounds = [0, *(round(share * len(source.labels)) for share in _SHARES), len(source.labels)]
    order = rng.permutation(len(source.labels))
    glyphs = np.asarray(source.images)[..., 0]
    pools = [order[start:stop] for start, stop in itertools.pairwise(bounds)]
    scenes = [
        _scene(glyphs[pool], source.labels[pool], most, sides, rng)
        for pool, count in zip(pools, counts)
        for _ in range(count)
    ]
    return Scenes(
        images=np.stack([pixels for pixels, _, _ in scenes])[..., None],
        boxes=[boxes for _, boxes, _ in scenes],
        masks=np.stack([mask for _, _, mask in scenes]),
        classes=source.classes,
        roles=np.repeat(np.arange(3), counts),
    )


def _scene(
    glyphs: NDArray[np.uint8],
    labels: NDArray[np.int64],
    most: int,
    sides: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Draw digits of the pool that do not touch; return pixels, boxes and mask."""
    ground = rng.uniform(10, 70) + rng.normal(0, rng.uniform(4, 16), (SIDE, SIDE))
    mask = np.zeros((SIDE, SIDE), np.uint8)
    rows = []
    for at in rng.choice(len(labels), int(rng.integers(1, most + 1)), replace=False):
        side = int(rng.integers(sides[0], sides[1] + 1))
        glyph = _enlarged(glyphs[at], side)
        place = _free(mask, side, rng)
        if place is None:
            continue
        top, left = place
        window = slice(top, top + side), slice(left, left + side)
        ink = glyph >= _INK
        ground[window] = np.maximum(ground[window], glyph * rng.uniform(0.65, 1.0))
        mask[window][ink] = 1 + labels[at]
        down, across = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        corners = left + across[0], top + down[0], left + across[-1] + 1, top + down[-1] + 1
        rows.append((labels[at], *(edge / SIDE for edge in corners), 0))
    pixels = np.clip(np.rint(ground), 0, 255).astype(np.uint8)
    return pixels, np.array(rows, np.float32).reshape(-1, COLUMNS), mask


def _enlarged(glyph: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    return np.asarray(Image.fromarray(glyph).resize((side, side), Image.Resampling.BICUBIC), np.float64)


def _free(mask: NDArray[np.uint8], side: int, rng: np.random.Generator) -> tuple[int, int] | None:
    """Return a corner from which a square of this side holds no digit."""
    for _ in range(_TRIES):
        top, left = (int(at) for at in rng.integers(0, SIDE - side + 1, 2))
        if not mask[top : top + side, left : left + side].any():
            return top, left
    return None
