"""Image classification: images in class folders or arrays, accuracy, and the one pre-processing of the runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.tasks import datasets
from edgekd.tasks.npz import check_images
from edgekd.tasks.pictures import Pictures, statistics
from edgekd.tasks.task import Split
from edgekd.values.job import CLASSIFICATION_LOSSES, TaskSection


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageClassification(Pictures):
    """Images of one class each, divided, and what turns them into tensors."""

    metric: str = "accuracy"

    @property
    def kind(self) -> str:
        """Classification."""
        return "classification"

    @property
    def outputs(self) -> int:
        """One logit a class."""
        return len(self.classes)

    @property
    def families(self) -> tuple[str, ...]:
        """Convolutions, dense and depthwise."""
        return ("residual", "inverted")

    @property
    def losses(self) -> Mapping[str, float]:
        """The labels, and what the teacher says of all classes (DIST)."""
        return CLASSIFICATION_LOSSES

    @property
    def criterion(self) -> str:
        """Cross-entropy."""
        return "ce"

    def answer_shape(self, resolution: int) -> tuple[int, ...]:
        """One logit a class, whatever the resolution."""
        del resolution
        return (self.outputs,)

    def decoding(self, resolution: int) -> dict[str, Any]:
        """Return nothing: the largest logit names the class."""
        del resolution
        return {}

    def score(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """Return the accuracy of logits (N, classes); a row that is not finite counts as wrong."""
        rows = outputs.reshape(len(labels), -1)
        right = (rows.argmax(axis=1) == labels) & np.isfinite(rows).all(axis=1)
        return float(right.mean())


class LiveDataset(Protocol):
    """A map-style data set, such as torch's: items are (image, label)."""

    def __len__(self) -> int:
        """Count the items."""

    def __getitem__(self, index: int, /) -> Any:
        """Return image and label."""


def load(section: TaskSection, *, beside: Path, cache: Path, seed: int = 0) -> ImageClassification:
    """Read the data set that `[task]` names.

    Raises:
        DataError: it cannot serve the task.

    """
    return _task(section, datasets.open_source(section.data, beside), cache, seed)


def from_arrays(
    images: NDArray[np.uint8],
    labels: Sequence[int] | NDArray[np.integer[Any]],
    *,
    section: TaskSection | None = None,
    classes: Sequence[str] = (),
    test: NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> ImageClassification:
    """Make a task of arrays in memory.

    Args:
        images: uint8 (N, H, W) or (N, H, W, C).
        labels: (N,), counted from 0.
        section: resolution, mean, flip and so on; its `data` only names the set.
        classes: names; none: the numbers.
        test: True where an image is for the test; None: 20 % are drawn.
        seed: of the split.

    Raises:
        DataError: the arrays cannot serve the task.

    """
    section = section or TaskSection(data="arrays in memory")
    numbers = np.asarray(labels, np.int64)
    names = tuple(classes) or tuple(str(number) for number in range(int(numbers.max(initial=-1)) + 1))
    source = datasets.Source(
        name=section.data,
        images=check_images(section.data, np.asarray(images)),
        labels=numbers,
        classes=names,
        test=test,
    )
    return _task(section, source, Path(), seed)


def from_dataset(
    dataset: LiveDataset, *, section: TaskSection | None = None, classes: Sequence[str] = (), seed: int = 0
) -> ImageClassification:
    """Make a task of a map-style data set whose items are (image, label), reading every item once.

    Images are PIL images, uint8 (H, W[, C]) arrays, or tensors (C, H, W), uint8 or float in [0, 1]; all of one
    size.

    Raises:
        DataError: an image is of another form, or the data cannot serve the task.

    """
    items = [dataset[at] for at in range(len(dataset))]
    images = [_uint8(image) for image, _ in items]
    if len({image.shape for image in images}) > 1:
        raise DataError("the images of the data set differ in size", mend="resize them to one size first")
    names = tuple(classes) or tuple(str(name) for name in getattr(dataset, "classes", ()))
    labels = np.asarray([int(label) for _, label in items], np.int64)
    pixels = np.stack(images) if images else np.empty((0, 1, 1, 1), np.uint8)
    return from_arrays(pixels, labels, section=section, classes=names, seed=seed)


def _uint8(image: Any) -> NDArray[np.uint8]:
    tensor = hasattr(image, "detach")
    pixels = np.asarray(image.detach().cpu() if tensor else image)
    if tensor and pixels.ndim == 3:  # noqa: PLR2004 - (C, H, W)
        pixels = pixels.transpose(1, 2, 0)
    if tensor and pixels.dtype.kind == "f":
        if pixels.min() < 0 or pixels.max() > 1:
            raise DataError(
                "the data set's images are already normalised",
                cause=f"pixels lie between {pixels.min():g} and {pixels.max():g}",
                mend="give pixels in [0, 1] or uint8: edgekd normalises, and ships how it did so",
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels  # noqa: PLR2004 - (H, W) is grey


def _task(section: TaskSection, source: datasets.Source, cache: Path, seed: int) -> ImageClassification:
    datasets.check(source)
    parts = datasets.split(source, section.validation, seed, section.validation_from)
    order = np.concatenate([parts.train, parts.validation, parts.test])
    pixels = datasets.arrange(source, order, cache, section.resolution)
    labels, start, divided = source.labels[order], 0, []
    for part in (parts.train, parts.validation, parts.test):
        rows = slice(start, start + len(part))
        divided.append(Split(samples=pixels[rows], labels=labels[rows]))
        start += len(part)
    mean, std = statistics(section, divided[0].samples)
    return ImageClassification(
        name=source.name,
        classes=source.classes,
        train=divided[0],
        validation=divided[1],
        test=divided[2],
        mean=mean,
        std=std,
        resolution=section.resolution or int(pixels.shape[1]),
        flip=section.flip,
        crop=section.crop,
    )
