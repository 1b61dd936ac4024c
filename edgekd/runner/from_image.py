"""Images: read from files, and made into tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.files import Refusal, one_line

_IMAGE_LIMIT_BYTES = 64 << 20
_IMAGE_LIMIT_PIXELS = 50_000_000
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # none that starts another program


def prepare(images: NDArray[np.uint8], spec: Mapping[str, Any] | object) -> NDArray[np.float32]:
    """Turn images into the model's input: resize, scale to [0, 1], normalise, channels first.

    Args:
        images: (N, H, W, C), C = 1 for grey and 3 for RGB.
        spec: what `preprocess.json` holds, or an object with the same attributes.

    Returns:
        (N, C, height, width).

    Raises:
        ValueError: the images are not of that type, shape or number of channels.

    """
    recipe = spec if isinstance(spec, Mapping) else vars(spec)
    mean, std = (np.asarray(recipe[name], np.float64) for name in ("mean", "std"))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != len(mean):  # noqa: PLR2004 - (N, H, W, C)
        raise ValueError(
            f"images must be uint8 of shape (N, H, W, {len(mean)}), not {images.dtype} {images.shape}"
        )
    images = _resized(images, int(recipe["height"]), int(recipe["width"]), str(recipe["resize"]))
    scale = (1 / (255 * std)).astype(np.float32)[:, None, None]
    shift = (-mean / std).astype(np.float32)[:, None, None]
    tensors = np.empty((len(images), len(mean), *images.shape[1:3]), np.float32)
    np.multiply(images.transpose(0, 3, 1, 2), scale, out=tensors)
    tensors += shift
    return tensors


def load(path: Path, channels: int) -> NDArray[np.uint8]:
    """Read an image file as (1, H, W, channels); 1 channel is grey, 3 are RGB, transparency is dropped.

    Raises:
        Refusal: Pillow is missing, or the file is no image, is damaged, or is too large to decode safely.

    """
    try:
        from PIL import Image
    except ImportError:
        raise Refusal("reading an image file needs Pillow: pip install pillow", 2) from None
    try:
        if path.stat().st_size > _IMAGE_LIMIT_BYTES:
            raise Refusal(f"{path} is larger than {_IMAGE_LIMIT_BYTES >> 20} MiB", 2)
        with Image.open(path, formats=_IMAGE_FORMATS) as image:  # reads the header only
            if image.width * image.height > _IMAGE_LIMIT_PIXELS:
                raise Refusal(f"{path} has {image.width} x {image.height} pixels: too many", 2)
            if image.mode.startswith("I;16"):  # 16 bits of grey; convert() would clip them
                deep = np.asarray(image).astype(np.uint16) >> 8
                image = Image.fromarray(deep.astype(np.uint8))  # noqa: PLW2901 - the same picture, 8 bits
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refusal(f"cannot read the image {path}: {one_line(error)}", 2) from None
    return pixels.reshape(1, *pixels.shape[:2], channels)


def _resized(images: NDArray[np.uint8], height: int, width: int, method: str) -> NDArray[np.uint8]:
    if images.shape[1:3] == (height, width):
        return images
    if method != "bilinear":
        raise ValueError(f"no resize method {method!r}; known: bilinear")
    from PIL import Image

    out = np.empty((len(images), height, width, images.shape[3]), np.uint8)
    grey = images.shape[3] == 1
    for at, pixels in enumerate(images):
        image = Image.fromarray(pixels[..., 0] if grey else pixels)
        out[at] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).reshape(out.shape[1:])
    return out
