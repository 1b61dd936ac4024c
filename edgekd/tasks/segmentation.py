"""Segmentation: a class for each pixel, mean IoU, and maps enlarged by the runner's own code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.runner.answers_segmentation import painted
from edgekd.tasks.masks import IGNORED, Masked, read_masked
from edgekd.tasks.pictures import STRIDE, Pictures, dense_side, divided, statistics
from edgekd.tasks.scenes import SIDE, digit_scenes
from edgekd.tasks.task import Split
from edgekd.values.job import TaskSection

BUILT_IN = "digits-masks"


class Segmentation(Pictures):
    """Images with masks; labels are uint8 (N, side, side): classes, or 255 where nothing is said.

    A network gives maps (classes, r / 4, r / 4), enlarged as `runner.answers_segmentation.painted` does.
    """

    @property
    def kind(self) -> str:
        """Segmentation."""
        return "segmentation"

    @property
    def outputs(self) -> int:
        """One map a class."""
        return len(self.classes)

    @property
    def families(self) -> tuple[str, ...]:
        """Networks that end in maps."""
        return ("residual_maps", "inverted_maps")

    @property
    def losses(self) -> Mapping[str, float]:
        """The masks, and what the teacher says of each pixel."""
        return {"masks": 1.0, "pixels": 1.0}

    @property
    def criterion(self) -> str:
        """Cross-entropy of the enlarged maps."""
        return "masks"

    def answer_shape(self, resolution: int) -> tuple[int, ...]:
        """Return the shape of the maps."""
        return (self.outputs, resolution // STRIDE, resolution // STRIDE)

    def decoding(self, resolution: int) -> dict[str, Any]:
        """Say how much the maps are enlarged."""
        del resolution
        return {"stride": STRIDE}

    def moved(
        self,
        labels: NDArray[Any],
        down: NDArray[np.int64],
        right: NDArray[np.int64],
        mirrored: NDArray[np.bool_],
    ) -> NDArray[Any]:
        """Move masks with their images, by pixels as they are kept; nothing is said of what comes in."""
        out = np.full_like(labels, IGNORED)
        side = labels.shape[1]
        for place, (mask, dy, dx, turned) in enumerate(zip(labels, down, right, mirrored)):
            target = out[place, :, ::-1] if turned else out[place]
            window = mask[max(0, -dy) : side - max(0, dy), max(0, -dx) : side - max(0, dx)]
            target[max(0, dy) : side + min(0, dy), max(0, dx) : side + min(0, dx)] = window
        return out

    def score(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """Return mean IoU of maps (N, classes, g, g); an image with one that is not finite counts as wrong."""
        maps = outputs.reshape(len(labels), *self.answer_shape(outputs.shape[-1] * STRIDE))
        counts = sum(_counted(one, mask) for one, mask in zip(maps, labels))
        return mean_iou(np.asarray(counts))


def mean_iou(counts: NDArray[np.int64]) -> float:
    """Return intersection over union, mean over the classes that are in the truth.

    Args:
        counts: (classes, classes + 1), pixels by true and given class; the last column: by none.

    """
    right = np.diagonal(counts)
    truth, given = counts.sum(axis=1), counts[:, :-1].sum(axis=0)
    there = truth > 0
    union = truth + given - right
    return float((right[there] / union[there]).mean()) if there.any() else 0.0


def _counted(maps: NDArray[Any], mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    classes = len(maps)
    given = (
        painted(maps, *mask.shape).astype(np.int64)
        if np.isfinite(maps).all()
        else np.full(mask.shape, classes, np.int64)
    )
    known = mask != IGNORED
    cells = mask[known].astype(np.int64) * (classes + 1) + given[known]
    return np.bincount(cells, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def load(section: TaskSection, *, beside: Path, cache: Path, seed: int = 0) -> Segmentation:
    """Read the data set that `[task]` names: folders images/ and masks/, an .npz, or "digits-masks".

    Raises:
        DataError: it cannot serve the task.
        ConfigError: `resolution` is not a multiple of 32.

    """
    if section.data == BUILT_IN:
        found = _built_in(section)
    else:
        found = read_masked(section, beside / Path(section.data).expanduser(), cache, BUILT_IN)
    return from_masks(section, found, seed)


def from_masks(section: TaskSection, found: Masked, seed: int = 0) -> Segmentation:
    """Make a task of images with masks in memory.

    Args:
        section: flip, crop and so on; its `data` only names the set.
        found: squares, of a side that is a multiple of 32.
        seed: of the division, where they bring none.

    Raises:
        DataError: they cannot serve the task.

    """
    parts = divided(section, section.data, found.roles, seed)
    train, validation, test = (
        Split(samples=found.images[part], labels=found.masks[part])
        for part in (parts.train, parts.validation, parts.test)
    )
    mean, std = statistics(section, train.samples)
    return Segmentation(
        name=section.data,
        classes=found.classes,
        train=train,
        validation=validation,
        test=test,
        mean=mean,
        std=std,
        resolution=int(found.images.shape[1]),
        flip=section.flip,
        crop=section.crop,
        metric="mIoU",
    )


def _built_in(section: TaskSection) -> Masked:
    scenes = digit_scenes(most=3, sides=(22, 36))
    if dense_side(section, SIDE) != SIDE:
        raise DataError(f"the images of {BUILT_IN} have {SIDE} pixels a side", mend="leave out resolution")
    return Masked(
        images=scenes.images, masks=scenes.masks, classes=("ground", *scenes.classes), roles=scenes.roles
    )
