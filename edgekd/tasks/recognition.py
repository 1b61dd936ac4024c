"""Recognition: embeddings of images by which classes that were never seen in training are told apart; recall@1.

Classes, not images, are divided: some are learnt from, some choose students, and some judge.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.tasks import datasets
from edgekd.tasks.pictures import Pictures, statistics
from edgekd.tasks.task import Split
from edgekd.values.job import TaskSection

TEST_SHARE = 0.3  # of the classes of a data set that brings no split of its own
_LEAST = 2  # classes of a part: among images of one, every neighbour is right
_PAIRS_EACH, _PAIR_SIDE = 8, 20
_ROWS = 512  # queries compared with all others at a time

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageRecognition(Pictures):
    """Images, divided by class: `classes` names those of training, which its labels number from 0."""

    outputs: int  # numbers of an embedding
    kind: str = "recognition"
    metric: str = "recall@1"
    families: tuple[str, ...] = ("residual", "inverted")
    criterion: str = "cosface"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = hashlib.sha256(f"{self.fingerprint} {self.outputs}".encode()).hexdigest()
        object.__setattr__(self, "fingerprint", whole)

    @property
    def losses(self) -> Mapping[str, float]:
        """The teacher's embedding itself, and how its embeddings relate."""
        return {"embedding": 1.0, "rkd": 0.1}

    def answer_shape(self, resolution: int) -> tuple[int, ...]:
        """One embedding, whatever the resolution."""
        del resolution
        return (self.outputs,)

    def decoding(self, resolution: int) -> dict[str, Any]:
        """Return nothing: the runner scales an embedding to length 1."""
        del resolution
        return {}

    def score(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """Return the share of embeddings whose nearest other, by cosine, is of the same class.

        One that is not finite, or without a direction, counts as wrong and as nobody's neighbour.
        """
        rows = outputs.reshape(len(labels), -1).astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1)
        usable = np.isfinite(lengths) & (lengths > 0)
        units = rows[usable] / lengths[usable, None]
        return float(nearest_alike(units, labels[usable]).sum() / len(labels))


def load(section: TaskSection, *, beside: Path, cache: Path, seed: int = 0) -> ImageRecognition:
    """Read the images that `[task]` names.

    Raises:
        DataError: they cannot serve the task.

    """
    built_in = BUILT_IN.get(section.data)
    source = built_in() if built_in else datasets.open_source(section.data, beside)
    datasets.check(source)
    groups = divide_classes(source, section.validation, seed)
    rows = [np.flatnonzero(np.isin(source.labels, group)) for group in groups]
    pixels = datasets.arrange(source, np.concatenate(rows), cache, section.resolution)
    numbers = np.argsort(np.concatenate(groups))  # of each class, those of training first
    labels, ends = numbers[source.labels], np.cumsum([0, *map(len, rows)])
    divided = [
        Split(samples=pixels[start:end], labels=labels[chosen])
        for start, end, chosen in zip(ends, ends[1:], rows)
    ]
    mean, std = statistics(section, divided[0].samples)
    return ImageRecognition(
        name=source.name,
        classes=tuple(source.classes[at] for at in groups[0]),
        train=divided[0],
        validation=divided[1],
        test=divided[2],
        mean=mean,
        std=std,
        resolution=section.resolution or int(pixels.shape[1]),
        flip=section.flip,
        crop=section.crop,
        outputs=section.embedding,
    )


def digit_pairs() -> datasets.Source:
    """Return 800 images of two of scikit-learn's digits side by side, 20 x 20 grey, "00" to "99", eight of each.

    Every digit is moved at random in its half, and stands in one image only. The single digits would not do: among the
    images of three unseen digits, the nearest in pixels is of the same digit 100 times in 100; here it is 10 times.
    """
    single = datasets.digits()
    rng = np.random.Generator(np.random.Philox(key=0))
    left = [rng.permutation(np.flatnonzero(single.labels == digit)).tolist() for digit in range(10)]
    labels = np.repeat(np.arange(100, dtype=np.int64), _PAIRS_EACH)
    images = np.zeros((len(labels), _PAIR_SIDE, _PAIR_SIDE, 1), np.uint8)
    half = _PAIR_SIDE // 2
    for image, label in zip(images, labels):
        for start, digit in zip((0, half), divmod(int(label), 10)):
            glyph = np.asarray(single.images)[left[digit].pop()]
            side = len(glyph)
            down, right = rng.integers(_PAIR_SIDE - side + 1), start + rng.integers(half - side + 1)
            image[down : down + side, right : right + side] = glyph
    names = tuple(f"{number:02}" for number in range(100))
    return datasets.Source(name="digit-pairs", images=images, labels=labels, classes=names)


BUILT_IN = {"digit-pairs": digit_pairs}


def divide_classes(source: datasets.Source, validation: float, seed: int) -> list[NDArray[np.int64]]:
    """Choose the classes to learn from, to choose by and to judge by, at least two each.

    A split that the data set brings decides the classes of the test; else they are 30 % of all.

    Raises:
        DataError: there are too few classes, a class has one image, or the split brings a class to both sides.

    """
    counts = np.bincount(source.labels, minlength=len(source.classes))
    if counts.min() < _LEAST:
        lonely = source.classes[int(counts.argmin())]
        raise DataError(f"class {lonely!r} of {source.name} has one image", mend="give two or more of each")
    rng = np.random.Generator(np.random.Philox(key=seed))
    order = rng.permutation(len(source.classes)).astype(np.int64)
    held = _brought(source) if source.test is not None else order[: _share(TEST_SHARE, len(order))]
    rest = order[~np.isin(order, held)]
    chosen, train = rest[: _share(validation, len(rest))], rest[_share(validation, len(rest)) :]
    if min(len(train), len(held)) < _LEAST:
        raise DataError(
            f"{source.name} has too few classes",
            cause=f"of {len(source.classes)}, {len(train)} are left to learn from and {len(held)} to test on",
            mend="give two classes or more for each of training, validation and test",
        )
    return [np.sort(group) for group in (train, chosen, held)]


def _share(share: float, count: int) -> int:
    return max(_LEAST, math.floor(share * count + 0.5))


def _brought(source: datasets.Source) -> NDArray[np.int64]:
    assert source.test is not None  # noqa: S101 - for the type checker
    held = np.unique(source.labels[source.test])
    shared = np.intersect1d(held, source.labels[~source.test])
    if len(shared):
        raise DataError(
            f"class {source.classes[int(shared[0])]!r} of {source.name} is in its training and its test part",
            cause="recognition is judged by classes that training has not seen",
            mend="put all images of a class into one part, or give no split",
        )
    return held


def nearest_alike(units: NDArray[np.float64], labels: NDArray[Any]) -> Flags:
    """Say of each row whether its nearest other is of the same class; (n,)."""
    alike = np.zeros(len(units), np.bool_)
    if len(units) < 2:  # noqa: PLR2004 - there is no other
        return alike
    for start in range(0, len(units), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(units)))
        likeness = units[rows] @ units.T
        likeness[rows - start, rows] = -np.inf
        alike[rows] = labels[likeness.argmax(axis=1)] == labels[rows]
    return alike
