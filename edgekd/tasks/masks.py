"""Read images with masks: folders images/ and masks/ of the same names, or an .npz."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekd.errors import DataError
from edgekd.store import replacing
from edgekd.tasks.decoding import FORMATS, Encoded, decoded
from edgekd.tasks.folders import SUFFIXES
from edgekd.tasks.npz import check_images
from edgekd.tasks.pictures import dense_side
from edgekd.values.job import TaskSection

IGNORED = 255  # in a mask: nothing is said of this pixel
_MODES = ("1", "L", "P")  # of a mask's file: numbers, not colours
_LIMIT_PIXELS = 50_000_000
_LIMIT_TEXT = 1 << 20
_FORMS = "give folders images/ and masks/ with files of the same names, perhaps in train/ and test/, and classes.txt"
_ARRAYS = "give {images u1 (N, H, W) or (N, H, W, C), masks u1 (N, H, W)}; classes and split may be added"


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Images with masks, before they are divided."""

    images: NDArray[np.uint8]  # (N, side, side, C)
    masks: NDArray[np.uint8]  # (N, side, side)
    classes: tuple[str, ...]
    roles: NDArray[np.int64]  # (N,): 0 train, 2 test


def read_masked(section: TaskSection, path: Path, cache: Path, built_in: str) -> Masked:
    """Read a folder or an .npz; images and masks are scaled to one square, masks to the nearest pixel.

    Raises:
        DataError: it is not of a known form, a mask is missing or names a class that there is not.

    """
    if path.is_dir():
        found = _from_folder(section, path, cache)
    elif path.is_file() and path.suffix == ".npz":
        found = _from_npz(section, path)
    else:
        raise DataError(
            f"[task] data = {section.data!r} cannot be read",
            cause=f"{path} is not an .npz file" if path.exists() else f"there is no {path}",
            mend=f'{_FORMS}; or an .npz, or "{built_in}"',
        )
    return _checked(str(path), found)


def _from_folder(section: TaskSection, root: Path, cache: Path) -> Masked:
    divided = all((root / part / "images").is_dir() for part in ("train", "test"))
    pairs = [
        (picture, mask, role)
        for part, role in ((("train", 0), ("test", 2)) if divided else ((".", 0),))
        for picture, mask in _pairs(root / part)
    ]
    if not pairs:
        raise DataError(f"{root} holds no images with masks", mend=_FORMS)
    pictures, masks = [one[0] for one in pairs], [one[1] for one in pairs]
    with _opened(pictures[0]) as first:
        side = dense_side(section, min(first.size))
    order = np.arange(len(pairs), dtype=np.int64)
    numbers = _masks(root, masks, side, cache)
    return Masked(
        images=decoded(_encoded(root, pictures), order, cache, side),
        masks=numbers,
        classes=_names(root / "classes.txt", numbers),
        roles=np.array([role for _, _, role in pairs], np.int64),
    )


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    if not (folder / "images").is_dir():
        return []
    masks = {path.stem: path for path in sorted((folder / "masks").glob("*.png"))}
    found = []
    for path in sorted((folder / "images").iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem not in masks:
                raise DataError(
                    f"{path} has no mask", cause=f"there is no masks/{path.stem}.png", mend=_FORMS
                )
            found.append((path, masks[path.stem]))
    return found


def _masks(root: Path, files: list[Path], side: int, cache: Path) -> NDArray[np.uint8]:
    """Return (N, side, side) mapped from `cache`, decoding it first where it is not there."""
    path = cache / f"masks-{_identity(root, files, side)}.npy"
    if not path.is_file():
        masks = np.stack([_mask(one, side) for one in files])
        with replacing(path) as partial, partial.open("wb") as file:
            np.save(file, masks, allow_pickle=False)
    kept: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return kept


def _mask(path: Path, side: int) -> NDArray[np.uint8]:
    with _opened(path) as image:
        if image.mode not in _MODES:
            raise DataError(
                f"the mask {path} holds colours, not classes",
                cause=f"its mode is {image.mode}",
                mend="write one byte a pixel: the number of its class, 255 where nothing is said",
            )
        try:
            scaled = image.resize((side, side), Image.Resampling.NEAREST)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} is not an image that can be read", cause=str(error)[:200]) from error
    return np.asarray(scaled, np.uint8)


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path, formats=FORMATS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not an image that can be read", cause=str(error)[:200]) from error
    if image.width * image.height > _LIMIT_PIXELS:
        image.close()
        raise DataError(
            f"{path} is too large to decode safely", cause=f"{image.width} x {image.height} pixels"
        )
    return image


def _names(path: Path, masks: NDArray[np.uint8]) -> tuple[str, ...]:
    if not path.is_file():
        return _numbers(masks)
    if path.stat().st_size > _LIMIT_TEXT:
        raise DataError(f"{path} is larger than {_LIMIT_TEXT >> 20} MiB")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _numbers(masks: NDArray[np.uint8]) -> tuple[str, ...]:
    largest = max((int(mask[mask != IGNORED].max(initial=0)) for mask in masks), default=0)
    return tuple(str(number) for number in range(largest + 1))


def _from_npz(section: TaskSection, path: Path) -> Masked:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise DataError(f"{path} cannot be read", cause=str(error)[:200], mend=_ARRAYS) from error
    if not {"images", "masks"} <= arrays.keys():
        raise DataError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}", mend=_ARRAYS)
    images, masks = check_images(str(path), arrays["images"]), arrays["masks"]
    if masks.dtype != np.uint8 or masks.shape != images.shape[:3]:
        raise DataError(f"the masks of {path} are {masks.dtype} of shape {masks.shape}", mend=_ARRAYS)
    split = arrays.get("split", np.zeros(len(images), np.int64))
    if split.shape != (len(images),) or not np.isin(split, (0, 1)).all():
        raise DataError(f"the split of {path} is wrong", mend="give 0 (train) or 1 (test) for each image")
    side = dense_side(section, min(images.shape[1:3]))
    names = tuple(str(one) for one in np.atleast_1d(arrays.get("classes", np.array([], "U1"))).tolist())
    return Masked(
        images=np.stack([_scaled(one, side, Image.Resampling.BILINEAR) for one in images]),
        masks=np.stack([_scaled(one, side, Image.Resampling.NEAREST) for one in masks]),
        classes=names or _numbers(masks),
        roles=2 * split.astype(np.int64),
    )


def _scaled(pixels: NDArray[np.uint8], side: int, how: Image.Resampling) -> NDArray[np.uint8]:
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels  # noqa: PLR2004 - (H, W, 1)
    scaled = np.asarray(Image.fromarray(flat).resize((side, side), how), np.uint8)
    return scaled.reshape(side, side, *pixels.shape[2:])


def _checked(name: str, found: Masked) -> Masked:
    if len(found.classes) < 2 or len(found.classes) > IGNORED:  # noqa: PLR2004 - there must be something to tell apart
        raise DataError(f"{name} has {len(found.classes)} classes", mend="give masks of 2 to 255 classes")
    for at, mask in enumerate(found.masks):
        largest = int(mask[mask != IGNORED].max(initial=0))
        if largest >= len(found.classes):
            raise DataError(
                f"a mask of {name} names a class that there is not",
                cause=f"mask {at} holds {largest}, classes are 0..{len(found.classes) - 1}",
                mend="number the classes from 0, and write 255 where nothing is said",
            )
    return found


def _encoded(root: Path, files: list[Path]) -> Encoded:
    def file_of(at: int) -> Path | io.BytesIO:
        return files[at]

    return Encoded(
        name_of=lambda at: str(files[at]),
        file_of=file_of,
        count=len(files),
        identity=_identity(root, files, 0),
    )


def _identity(root: Path, files: list[Path], side: int) -> str:
    digest = hashlib.sha256(f"{side}\n".encode())
    for path in files:
        stat = path.stat()
        digest.update(f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
