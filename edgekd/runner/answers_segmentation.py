"""What each pixel of an image shows."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.files import Refusal, one_line, printable
from edgekd.runner.from_image import load, prepare
from edgekd.runner.student import Student

_STRIP_ELEMENTS = 1 << 22  # of enlarged maps held at once


def describe() -> str:
    """Say what the bundle does, for `--help`."""
    return "Say what each pixel of an image shows, with the bundle beside this file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is asked of a segmenter."""
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="PNG, JPEG, BMP, ...")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="write the classes as a PNG with a palette")


def answer(student: Student, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the share of each class, and the model's inputs; write the mask where one is asked for."""
    image = load(options.image, len(student.recipe["mean"]))
    tensor = prepare(image, student.recipe)
    height, width = image.shape[1:3]
    mask = segment(student, tensor, height, width)
    if options.mask is not None:
        _write_mask(options.mask, mask)
    counts = np.bincount(mask.reshape(-1), minlength=len(student.classes))
    shares = {name: round(int(n) / mask.size, 6) for name, n in zip(student.classes, counts)}
    said = {"width": width, "height": height, "shares": shares}
    return said, {next(iter(student.inputs)): tensor}


def segment(student: Student, tensor: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    """Return the class of each pixel, (height, width), of one prepared image (1, C, side, side)."""
    maps = student.rows(tensor)[0]
    if maps.ndim != 3 or len(maps) != len(student.classes):  # noqa: PLR2004 - (classes, g, g)
        raise Refusal(f"the model gives {maps.shape} for {len(student.classes)} classes", 6)
    return painted(maps, height, width)


def painted(maps: NDArray[Any], height: int, width: int) -> NDArray[np.uint8]:
    """Enlarge maps (classes, g, g) between their pixels, and return the strongest class, (height, width)."""
    down, across = (_between(side, wanted) for side, wanted in zip(maps.shape[1:], (height, width)))
    rows = np.asarray(maps, np.float32) @ across.T  # (classes, g, width)
    strip = max(1, _STRIP_ELEMENTS // (len(maps) * width))
    parts = [
        np.einsum("hg,cgw->chw", down[at : at + strip], rows, optimize=True).argmax(axis=0)
        for at in range(0, height, strip)
    ]
    return np.concatenate(parts).astype(np.uint8)


def show(found: Mapping[str, Any]) -> None:
    """Print the share of each class that is there, the largest first."""
    for name, share in sorted(found["shares"].items(), key=lambda one: -one[1]):
        if share:
            print(f"{printable(name)}\t{100 * share:.2f} %")


def _between(side: int, wanted: int) -> NDArray[np.float32]:
    """Return (wanted, side): the weights of linear interpolation between the middles of pixels."""
    places = np.clip((np.arange(wanted) + 0.5) * side / wanted - 0.5, 0, side - 1)
    below = np.floor(places).astype(np.int64)
    weights = np.zeros((wanted, side), np.float32)
    weights[np.arange(wanted), below] = 1 - (places - below)
    weights[np.arange(wanted), np.minimum(below + 1, side - 1)] += places - below
    return weights


def _palette(count: int = 256) -> bytes:
    """Return 3 bytes a class as PASCAL VOC colours them: the number's bits, spread over red, green and blue."""
    colours = bytearray()
    for number in range(count):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= (number >> 3 * bit + channel & 1) << 7 - bit
        colours += bytes(rgb)
    return bytes(colours)


def _write_mask(path: Path, mask: NDArray[np.uint8]) -> None:
    from PIL import Image

    picture = Image.fromarray(mask).convert("L")
    picture.putpalette(_palette())  # makes it "P": pixels stay the classes' numbers
    try:
        picture.save(path, format="PNG")
    except OSError as error:
        raise Refusal(f"cannot write {path}: {one_line(error)}", 2) from None
