"""Tasks on images: three parts, one normalisation, and the one pre-processing of the runner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import ConfigError, DataError
from edgekd.runner.from_image import prepare
from edgekd.tasks.datasets import TEST_SHARE, Indices, Parts
from edgekd.tasks.task import Split, fingerprint_of
from edgekd.values.job import TaskSection
from edgekd.values.preprocess import Preprocess

STRIDE = 4  # pixels of an image's side for one of a map of answers
DEEPEST = 32  # pixels of an image's side for one of the deepest features: sides are multiples of it

_CHUNK = 1024  # images summed at a time: the rest stays on disk


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Square images, divided, and what turns them into tensors."""

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
    metric: str
    fingerprint: str = field(init=False)  # of the pixels, labels and settings

    def __post_init__(self) -> None:
        settings = (self.classes, self.mean, self.std, self.resolution, self.flip, self.crop, self.metric)
        parts = (self.train, self.validation, self.test)
        object.__setattr__(self, "fingerprint", fingerprint_of(settings, parts))

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return len(self.mean)

    def split(self, name: str) -> Split:
        """Return the part called train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def preprocess(self, resolution: int) -> Preprocess:
        """Say how an image becomes the input of a network of this resolution."""
        return Preprocess(height=resolution, width=resolution, mean=self.mean, std=self.std)

    def prepare(self, samples: NDArray[Any], resolution: int) -> NDArray[np.float32]:
        """Turn images (n, H, W, C) into tensors (n, C, resolution, resolution)."""
        return prepare(np.asarray(samples), self.preprocess(resolution))

    def inputs(self, split: Split, resolution: int, limit: int | None = None) -> NDArray[np.float32]:
        """Pre-process a split, or `split.spread(limit)`.

        Returns:
            (n, 1, C, resolution, resolution): a row an inference.

        """
        chosen = split if limit is None else split.spread(limit)
        return self.prepare(chosen.samples, resolution)[:, None]


def statistics(
    section: TaskSection, images: NDArray[np.uint8]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation a channel of pixels in [0, 1]: the given ones, or the images' own.

    Raises:
        ConfigError: the given ones are for another number of channels.

    """
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


def divided(section: TaskSection, name: str, roles: NDArray[np.int64], seed: int) -> Parts:
    """Set aside test and validation images by chance, where the data set does not say itself.

    Args:
        section: shares, and where the validation images come from.
        name: of the data set, for messages.
        roles: of each image what the data set says: 0 train, 1 validation, 2 test; without any 2, all are to divide.
        seed: of the draw.

    Raises:
        DataError: a part would be empty.

    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    train, validation, test = (np.flatnonzero(roles == role) for role in range(3))
    if not len(test):
        test, train = _drawn(train, TEST_SHARE, rng)
    if section.validation_from == "test":
        train = np.sort(np.concatenate([train, validation]))
        validation, test = _drawn(test, section.validation, rng)
    elif not len(validation):
        validation, train = _drawn(train, section.validation, rng)
    parts = Parts(train=train, validation=validation, test=test)
    for part, found in vars(parts).items():
        if not len(found):
            raise DataError(f"{name} leaves no images for {part}", cause=f"it holds {len(roles)} in all")
    return parts


def dense_side(section: TaskSection, own: int) -> int:
    """Return the side that images are kept at: `resolution`, or the nearest to their own that maps of answers allow.

    Raises:
        ConfigError: `resolution` is not a multiple of 32.

    """
    if section.resolution is None:
        return max(1, round(own / DEEPEST)) * DEEPEST
    if section.resolution % DEEPEST:
        raise ConfigError(
            f"[task] resolution of {section.kind} must be a multiple of {DEEPEST}",
            cause=f"it is {section.resolution}, and the deepest features have a {DEEPEST}th of the side",
            mend=f"set it to {max(1, round(section.resolution / DEEPEST)) * DEEPEST}",
        )
    return section.resolution


def _drawn(among: Indices, share: float, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Return a share of the images by chance, at least one, and the rest."""
    taken = np.sort(rng.permutation(among)[: max(1, round(share * len(among)))])
    return taken, np.setdiff1d(among, taken, assume_unique=True)
