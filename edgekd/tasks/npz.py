"""Read an .npz of images or of JPEG files back to back; nothing in it is ever unpickled."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.tasks.decoding import Encoded

_FORMS = (
    "{images u1 (N, H, W) or (N, H, W, C), labels} or {jpeg, offset, label}; split and classes may be added"
)

_Content = tuple[NDArray[np.uint8] | Encoded, NDArray[np.int64], tuple[str, ...], NDArray[np.bool_] | None]


def read_npz(path: Path) -> _Content:
    """Return images, labels, class names and the split of an .npz.

    Raises:
        DataError: it is damaged, holds objects, or arrays of another form.

    """
    arrays = read_arrays(path, _FORMS)
    if {"jpeg", "offset", "label"} <= arrays.keys():
        images: NDArray[np.uint8] | Encoded = _encoded(path, arrays["jpeg"], arrays["offset"])
        labels = _labels(path, arrays["label"])
    elif {"images", "labels"} <= arrays.keys():
        images, labels = check_images(str(path), arrays["images"]), _labels(path, arrays["labels"])
    else:
        raise DataError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}", mend=f"give {_FORMS}")
    return images, labels, _classes(arrays, labels), split_of(path, arrays, len(labels))


def read_arrays(path: Path, forms: str) -> dict[str, NDArray[np.generic]]:
    """Read all arrays of an .npz.

    Args:
        path: of the .npz.
        forms: what it should hold, for messages.

    Raises:
        DataError: it is damaged, or holds objects.

    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise DataError(
            f"{path} cannot be read",
            cause=str(error)[:200],
            mend=f"write it with numpy.savez, numbers and strings only: {forms}",
        ) from error


def split_of(path: Path, arrays: Mapping[str, NDArray[np.generic]], count: int) -> NDArray[np.bool_] | None:
    """Return what `split` says: True where a sample is for the test; None where it is not given.

    Raises:
        DataError: it is not a 0 or 1 for each sample.

    """
    if "split" not in arrays:
        return None
    split = arrays["split"]
    if split.shape != (count,) or not np.isin(split, (0, 1)).all():
        raise DataError(f"the split of {path} is wrong", mend="give 0 (train) or 1 (test) for each sample")
    return split.astype(np.bool_)


def check_images(name: str, images: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return images as (N, H, W, C).

    Raises:
        DataError: they are not uint8, or of another shape.

    """
    shaped = images[..., None] if images.ndim == 3 else images  # noqa: PLR2004 - (N, H, W) is grey
    if shaped.dtype != np.uint8 or shaped.ndim != 4 or shaped.shape[3] not in (1, 3) or 0 in shaped.shape[1:]:  # noqa: PLR2004
        raise DataError(
            f"the images of {name} are {images.dtype} of shape {images.shape}",
            mend="give uint8 pixels 0..255 of shape (N, H, W) for grey or (N, H, W, 3) for RGB",
        )
    return np.ascontiguousarray(shaped, dtype=np.uint8)


def _labels(path: Path, labels: NDArray[np.generic]) -> NDArray[np.int64]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"the labels of {path} are {labels.dtype} of shape {labels.shape}",
            mend="give one whole number an image, counted from 0",
        )
    return labels.astype(np.int64)


def _classes(arrays: dict[str, NDArray[np.generic]], labels: NDArray[np.int64]) -> tuple[str, ...]:
    if "classes" in arrays:
        return tuple(str(name) for name in np.atleast_1d(arrays["classes"]).tolist())
    return tuple(str(number) for number in range(int(labels.max(initial=-1)) + 1))


def _encoded(path: Path, jpeg: NDArray[np.generic], offset: NDArray[np.generic]) -> Encoded:
    ends = (
        offset.astype(np.int64) if offset.dtype.kind in "iu" and offset.ndim == 1 else np.empty(0, np.int64)
    )
    right = jpeg.dtype == np.uint8 and jpeg.ndim == 1 and len(ends) > 1
    if not right or ends[0] < 0 or ends[-1] > len(jpeg) or (np.diff(ends) <= 0).any():
        raise DataError(
            f"the offsets of {path} do not cut its JPEG bytes into images",
            mend="image i must be jpeg[offset[i]:offset[i + 1]]",
        )
    digest = hashlib.sha256(jpeg.tobytes())
    digest.update(ends.tobytes())
    return Encoded(
        name_of=lambda at: f"image {at} of {path}",
        file_of=lambda at: io.BytesIO(jpeg[ends[at] : ends[at + 1]].tobytes()),
        count=len(ends) - 1,
        identity=digest.hexdigest(),
    )
