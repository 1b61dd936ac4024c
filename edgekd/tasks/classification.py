"""Image classification: images in class folders or arrays, accuracy, and the one pre-processing of the runner."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import ConfigError, DataError
from edgekd.runner import preprocess
from edgekd.tasks import datasets
from edgekd.tasks.npz import check_images
from edgekd.values.job import TaskSection
from edgekd.values.preprocess import Preprocess

_CHUNK = 1024  # images hashed or summed at a time: the rest stays on disk


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Images and their labels."""

    images: NDArray[np.uint8]  # (N, side, side, C)
    labels: NDArray[np.int64]  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Split:
        """Return the images from `start` up to `stop`."""
        return Split(images=self.images[start:stop], labels=self.labels[start:stop])

    def spread(self, limit: int) -> Split:
        """Return at most `limit` images, evenly spread: where classes follow each other, of every class."""
        count = min(limit, len(self))
        chosen = np.arange(count) * len(self) // max(count, 1)
        return Split(images=self.images[chosen], labels=self.labels[chosen])


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageClassification:
    """A data set, divided, and what turns its images into tensors.

    The validation part chooses students; the test part is for the last verdict alone.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]  # of pixels in [0, 1], one a channel
    std: tuple[float, ...]
    resolution: int  # side of the teacher's input
    flip: bool  # mirror images at random
    crop: int  # pixels of padding for random crops, at `resolution`
    metric: str = "accuracy"
    fingerprint: str = field(init=False)  # of the pixels, labels and settings

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", _fingerprint(self))

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return len(self.mean)

    @property
    def side(self) -> int:
        """Side in pixels of the images as they are kept."""
        return int(self.train.images.shape[1])

    def preprocess(self, resolution: int) -> Preprocess:
        """Say how an image becomes the input of a network of this resolution."""
        return Preprocess(height=resolution, width=resolution, mean=self.mean, std=self.std)

    def split(self, name: str) -> Split:
        """Return the part called train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def inputs(self, split: Split, resolution: int, limit: int | None = None) -> NDArray[np.float32]:
        """Pre-process a split, or `split.spread(limit)`.

        Returns:
            (n, 1, C, resolution, resolution): a row an inference.

        """
        images = split.spread(limit).images if limit is not None else split.images
        return preprocess(np.asarray(images), self.preprocess(resolution))[:, None]

    def score(self, logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
        """Return the accuracy of logits (N, classes); a row that is not finite counts as wrong."""
        rows = logits.reshape(len(labels), -1)
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
        divided.append(Split(images=pixels[rows], labels=labels[rows]))
        start += len(part)
    mean, std = _statistics(section, divided[0].images)
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


def _statistics(
    section: TaskSection, images: NDArray[np.uint8]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation a channel of pixels in [0, 1]: the given ones, or the images' own."""
    channels = images.shape[3]
    for name, given in (("mean", section.mean), ("std", section.std)):
        if given is not None and len(given) != channels:
            raise ConfigError(f"[task] {name} has {len(given)} values, the images have {channels} channels")
    sums, squares = np.zeros(channels), np.zeros(channels)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].reshape(-1, channels).astype(np.float64) / 255
        sums += chunk.sum(axis=0)
        squares += np.square(chunk).sum(axis=0)
    count = images.size / channels
    mean = sums / count
    # Images of one flat colour have no spread; 1/255 keeps the division harmless.
    std = np.sqrt(np.maximum(squares / count - mean**2, 255.0**-2))
    return (
        section.mean or tuple(round(float(value), 6) for value in mean),
        section.std or tuple(round(float(value), 6) for value in std),
    )


def _fingerprint(task: ImageClassification) -> str:
    digest = hashlib.sha256()
    settings = (task.classes, task.mean, task.std, task.resolution, task.flip, task.crop, task.metric)
    digest.update(repr(settings).encode())
    for part in (task.train, task.validation, task.test):
        digest.update(repr(part.images.shape).encode())
        digest.update(np.ascontiguousarray(part.labels).tobytes())
        for start in range(0, len(part), _CHUNK):
            digest.update(np.ascontiguousarray(part.images[start : start + _CHUNK]).data)
    return digest.hexdigest()
