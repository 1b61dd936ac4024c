"""Decode image files once, safely, into one array on disk that every later run maps into memory."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from edgekd.errors import DataError
from edgekd.store import replacing

log = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # as the runner: none that starts a program
_PIXEL_LIMIT = 50_000_000  # of one image, as the runner's
_CHUNK = 512  # images decoded before they are written
_FAILURES = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Images still in their files: each has a name for messages and something Pillow can open."""

    name_of: Callable[[int], str]
    file_of: Callable[[int], Path | io.BytesIO]
    count: int
    identity: str  # of the files' content; names the decoded array

    def __len__(self) -> int:
        return self.count


def decoded(images: Encoded, order: NDArray[np.int64], cache: Path, side: int | None) -> NDArray[np.uint8]:
    """Return (len(order), side, side, C) mapped from `cache`, decoding it first where it is not there.

    Raises:
        DataError: an image is broken or too large to decode safely.
        ResourcesExhausted: the disk is full.

    """
    key = hashlib.sha256(f"1 {images.identity} {side} ".encode() + order.tobytes()).hexdigest()[:32]
    path = cache / f"images-{key}.npy"
    if not path.is_file():
        _write(images, order, path, side)
    pixels: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return pixels


def side_of(sizes: Sequence[tuple[int, int]], side: int | None) -> int:
    """Choose the side of the square that images of these (width, height) are kept at.

    Images of one square size are kept as they are unless `side` is smaller; the rest is resized to `side`, or
    to the median of their shorter sides.
    """
    if len(set(sizes)) == 1 and sizes[0][0] == sizes[0][1]:
        return min(sizes[0][0], side or sizes[0][0])
    return side or round(statistics.median(min(size) for size in sizes))


def _write(images: Encoded, order: NDArray[np.int64], path: Path, side: int | None) -> None:
    log.info("reading %d images", len(order))
    headers = [_header(images, int(at)) for at in order]
    wanted = side_of([size for size, _ in headers], side)
    channels = 1 if all(grey for _, grey in headers) else 3
    shape = (len(order), wanted, wanted, channels)
    with replacing(path) as partial, partial.open("wb") as file:
        npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for chunk in _chunks(images, order, wanted, channels):
            file.write(chunk)


def _chunks(images: Encoded, order: NDArray[np.int64], side: int, channels: int) -> Iterator[bytes]:
    def one(at: int) -> bytes:
        return _pixels(images, at, side, channels)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(order), _CHUNK):
            yield b"".join(pool.map(one, order[start : start + _CHUNK].tolist()))


def _header(images: Encoded, at: int) -> tuple[tuple[int, int], bool]:
    """Return (width, height) and whether the image is grey."""
    try:
        with Image.open(images.file_of(at), formats=FORMATS) as image:
            size = image.size
            grey = image.mode in {"1", "L"} or image.mode.startswith("I;16")
    except (*_FAILURES, Image.DecompressionBombWarning) as error:
        raise _broken(images.name_of(at), error) from error
    if size[0] * size[1] > _PIXEL_LIMIT:
        raise DataError(
            f"{images.name_of(at)} is too large to decode safely",
            cause=f"{size[0]} x {size[1]} pixels, the limit is {_PIXEL_LIMIT}",
            mend="remove the image or scale it down",
        )
    return size, grey


def _pixels(images: Encoded, at: int, side: int, channels: int) -> bytes:
    try:
        with Image.open(images.file_of(at), formats=FORMATS) as opened:
            image: Image.Image = opened
            if image.mode.startswith("I;16"):  # 16 bits of grey; convert() would clip them
                image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
            image = image.convert("L" if channels == 1 else "RGB")
            if image.size != (side, side):
                image = image.resize((side, side), Image.Resampling.BILINEAR)
            return image.tobytes()
    except _FAILURES as error:
        raise _broken(images.name_of(at), error) from error


def _broken(name: str, error: BaseException) -> DataError:
    return DataError(
        f"{name} is not an image that can be read",
        cause=" ".join(str(error).split())[:200],
        mend="repair the file or remove it",
    )
