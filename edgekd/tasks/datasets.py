"""Find the images and labels a job names, and split them; pixels are decoded once, in the order of the split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.tasks.decoding import Encoded, decoded, side_of
from edgekd.tasks.folders import read_folders
from edgekd.tasks.npz import read_npz

Pixels = NDArray[np.uint8]  # (N, side, side, C)
Labels = NDArray[np.int64]  # (N,)
Indices = NDArray[np.int64]

TEST_SHARE = 0.2  # of a data set that brings no split of its own


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set before it is split."""

    name: str
    images: Pixels | Encoded
    labels: Labels
    classes: tuple[str, ...]
    test: NDArray[np.bool_] | None = None  # the split it brings; None: it brings none


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which images of a source are for what."""

    train: Indices
    validation: Indices
    test: Indices


def open_source(data: str, beside: Path) -> Source:
    """Find what `[task] data` names, without decoding its images.

    Raises:
        DataError: nothing is there, or it is not a data set of a known form.

    """
    if data in BUILT_IN:
        return BUILT_IN[data]()
    path = beside / Path(data).expanduser()
    images: Pixels | Encoded
    if path.is_dir():
        images, labels, classes, test = read_folders(path)
    elif path.is_file() and path.suffix == ".npz":
        images, labels, classes, test = read_npz(path)
    else:
        raise DataError(
            f"[task] data = {data!r} cannot be read",
            cause=f"{path} is not an .npz file" if path.exists() else f"there is no {path}",
            mend=f"give a folder with one folder of images a class, an .npz, or one of: {', '.join(BUILT_IN)}",
        )
    return Source(name=data, images=images, labels=labels, classes=classes, test=test)


def digits() -> Source:
    """Return the 1797 handwritten digits that ship with scikit-learn, 8x8 grey."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    names = tuple(str(name) for name in bunch.target_names)
    return Source(name="digits", images=images, labels=bunch.target.astype(np.int64), classes=names)


BUILT_IN = {"digits": digits}


def check(source: Source) -> None:
    """Refuse labels that cannot be learnt from.

    Raises:
        DataError: one class, an empty class, labels out of range or missing.

    """
    labels, classes = source.labels, source.classes
    if len(labels) != len(source.images):
        raise DataError(f"{source.name} holds {len(source.images)} images and {len(labels)} labels")
    if not len(labels):
        raise DataError(f"{source.name} holds no images")
    if labels.min() < 0 or labels.max() >= len(classes):
        at = int(np.argmax((labels < 0) | (labels >= len(classes))))
        raise DataError(
            f"{source.name} holds a label out of range",
            cause=f"image {at} has label {labels[at]}, classes are 0..{len(classes) - 1}",
            mend="number the labels from 0, in the order of `classes`",
        )
    if len(classes) < 2:  # noqa: PLR2004 - there is nothing to tell apart
        raise DataError(
            f"{source.name} holds one class, {classes[0]!r}", mend="give images of at least two classes"
        )
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        empty = classes[int(np.argmin(counts))]
        raise DataError(f"class {empty!r} of {source.name} is empty", mend="add images to it or remove it")


def split(source: Source, validation: float, seed: int, validation_from: str = "train") -> Parts:
    """Set aside test and validation images, the same share of each class.

    A split that the data set brings decides the test images; else they are 20 % of all. Validation images are
    a share of the training images, or of the test images where the teacher knows the training images already.

    Raises:
        DataError: a class has too few images to be in every part.

    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    rest = np.arange(len(source.labels), dtype=np.int64)
    if source.test is None:
        test, rest = _draw(source, rest, TEST_SHARE, rng)
    else:
        test, rest = rest[source.test], rest[~source.test]
        if not len(test) or not len(rest):
            raise DataError(f"the split of {source.name} leaves no images for training or for the test")
    if validation_from == "test":
        chosen, test = _draw(source, test, validation, rng)
        return Parts(train=rest, validation=chosen, test=test)
    chosen, train = _draw(source, rest, validation, rng)
    return Parts(train=train, validation=chosen, test=test)


def arrange(source: Source, order: Indices, cache: Path, side: int | None) -> Pixels:
    """Return pixels in `order`: in memory, or mapped from a file in `cache`, square and of one size."""
    if isinstance(source.images, Encoded):
        return decoded(source.images, order, cache, side)
    images = source.images[order]
    wanted = side_of([(images.shape[2], images.shape[1])], side)
    return images if images.shape[1:3] == (wanted, wanted) else _resized(images, wanted)


def _draw(source: Source, among: Indices, share: float, rng: np.random.Generator) -> tuple[Indices, Indices]:
    taken = []
    for number, name in enumerate(source.classes):
        members = among[source.labels[among] == number]
        count = max(1, math.floor(share * len(members) + 0.5))
        if count >= len(members):
            raise DataError(
                f"class {name!r} of {source.name} has too few images",
                cause=f"{len(members)} cannot be divided among training, validation and test",
                mend="add images to it, or remove the class",
            )
        taken.append(rng.permutation(members)[:count])
    drawn = np.sort(np.concatenate(taken))
    return drawn, np.setdiff1d(among, drawn, assume_unique=True)


def _resized(images: Pixels, side: int) -> Pixels:
    from PIL import Image

    out = np.empty((len(images), side, side, images.shape[3]), np.uint8)
    for at, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if images.shape[3] == 1 else image)
        out[at] = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)).reshape(out.shape[1:])
    return out
