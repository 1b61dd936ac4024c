"""Detection: objects with boxes, mAP at IoU 0.5, and boxes read from a network's maps by the runner's own code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.runner.boxes import BINS, REACH, decode_boxes
from edgekd.tasks import boxes
from edgekd.tasks.decoding import decoded
from edgekd.tasks.pictures import STRIDE, Pictures, dense_side, divided, statistics
from edgekd.tasks.scenes import SIDE, Scenes, digit_scenes
from edgekd.tasks.task import Split
from edgekd.tasks.voc import Annotated, read_voc
from edgekd.values.job import TaskSection

BUILT_IN = "digits-scenes"

_SHOWN = 0.3  # score from which the runner shows a box
_JUDGED = 0.02  # score from which a box counts for mAP, which is over all scores
_USUAL_SIDE = 160  # of images that are not square


class Detection(Pictures):
    """Images with boxes; labels are (N, M, 6): class or -1, left, top, right, bottom in shares of the side, difficult.

    A network gives maps (classes + 4 * BINS, r / 4, r / 4), as `runner.boxes.decode_boxes` reads them.
    """

    @property
    def kind(self) -> str:
        """Detection."""
        return "detection"

    @property
    def outputs(self) -> int:
        """A logit a class, and a distribution for each of four edges."""
        return len(self.classes) + 4 * BINS

    @property
    def families(self) -> tuple[str, ...]:
        """Networks that end in maps."""
        return ("residual_maps", "inverted_maps")

    @property
    def losses(self) -> Mapping[str, float]:
        """The boxes, what the teacher says of cells, and where it sees their edges."""
        return {"boxes": 1.0, "crosskd_classes": 1.0, "ld": 0.25}

    @property
    def criterion(self) -> str:
        """Generalised focal loss."""
        return "boxes"

    def answer_shape(self, resolution: int) -> tuple[int, ...]:
        """Return the shape of the maps."""
        return (self.outputs, resolution // STRIDE, resolution // STRIDE)

    def decoding(self, resolution: int) -> dict[str, Any]:
        """Say how boxes are read from the maps."""
        del resolution
        return {"bins": BINS, "reach": REACH, "overlap": 0.5, "most": 100, "least": _SHOWN, "stride": STRIDE}

    def moved(
        self,
        labels: NDArray[Any],
        down: NDArray[np.int64],
        right: NDArray[np.int64],
        mirrored: NDArray[np.bool_],
    ) -> NDArray[Any]:
        """Move boxes with their images, by pixels as they are kept."""
        side = self.train.samples.shape[1]
        return boxes.moved(labels, down / side, right / side, mirrored)

    def score(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """Return mAP at IoU 0.5 of maps (N, outputs, g, g); where one is not finite, nothing is found in the image."""
        side = outputs.shape[-1] * STRIDE
        maps = outputs.reshape(len(labels), *self.answer_shape(side))
        found = [decode_boxes(one, self.decoding(side), _JUDGED) for one in maps]
        return boxes.mean_average_precision(found, labels, len(self.classes))


def load(section: TaskSection, *, beside: Path, cache: Path, seed: int = 0) -> Detection:
    """Read the data set that `[task]` names: a folder in the form of PASCAL VOC, or "digits-scenes".

    Raises:
        DataError: it cannot serve the task.
        ConfigError: `resolution` is not a multiple of 32.

    """
    if section.data == BUILT_IN:
        scenes = digit_scenes(most=5, sides=(14, 26))
        side = dense_side(section, SIDE)
        if side != SIDE:
            raise DataError(
                f"the images of {BUILT_IN} have {SIDE} pixels a side", mend="leave out resolution"
            )
        return from_boxes(section, scenes.images, scenes, seed)
    path = beside / Path(section.data).expanduser()
    if not path.is_dir():
        raise DataError(
            f"[task] data = {section.data!r} cannot be read",
            cause=f"{path} is no folder" if path.exists() else f"there is no {path}",
            mend=f'give a folder in the form of PASCAL VOC, or "{BUILT_IN}"',
        )
    found = read_voc(path)
    side = dense_side(section, _USUAL_SIDE)
    order = np.arange(len(found.boxes), dtype=np.int64)
    pixels = decoded(found.images, order, cache, side)
    return from_boxes(section, pixels, found, seed)


def from_boxes(
    section: TaskSection, pixels: NDArray[np.uint8], found: Annotated | Scenes, seed: int = 0
) -> Detection:
    """Make a task of images with boxes in memory.

    Args:
        section: flip, crop and so on; its `data` only names the set.
        pixels: (N, side, side, C), the side a multiple of 32.
        found: what is in them.
        seed: of the division, where they bring none.

    Raises:
        DataError: they cannot serve the task.

    """
    parts = divided(section, section.data, found.roles, seed)
    rows = boxes.padded(found.boxes)
    train, validation, test = (
        Split(samples=pixels[part], labels=rows[part]) for part in (parts.train, parts.validation, parts.test)
    )
    _check(section.data, train, found.classes)
    mean, std = statistics(section, train.samples)
    return Detection(
        name=section.data,
        classes=found.classes,
        train=train,
        validation=validation,
        test=test,
        mean=mean,
        std=std,
        resolution=int(pixels.shape[1]),
        flip=section.flip,
        crop=section.crop,
        metric="mAP@0.5",
    )


def _check(name: str, train: Split, classes: tuple[str, ...]) -> None:
    present = set(train.labels[:, :, 0].reshape(-1).astype(int).tolist())
    for number, label in enumerate(classes):
        if number not in present:
            raise DataError(
                f"no training image of {name} holds a {label!r}", mend="divide the images otherwise"
            )
