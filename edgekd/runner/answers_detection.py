"""What is where in an image."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.boxes import Boxes, decode_boxes
from edgekd.runner.files import Refusal, one_line, printable
from edgekd.runner.from_image import load, prepare
from edgekd.runner.student import Student

_COLOURS = ((230, 60, 50), (40, 120, 220), (30, 150, 70), (230, 150, 20), (150, 70, 190), (20, 160, 170))


def describe() -> str:
    """Say what the bundle does, for `--help`."""
    return "Find objects in an image with the bundle beside this file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is asked of a detector."""
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="PNG, JPEG, BMP, ...")
    parser.add_argument("--least", type=float, metavar="SCORE", help="show boxes from this score on, 0 to 1")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="write the image with its boxes as a PNG")


def answer(student: Student, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the boxes in pixels of the image, and the model's inputs."""
    if options.least is not None and not 0 < options.least <= 1:
        raise Refusal("--least must lie between 0 and 1", 2)
    image = load(options.image, len(student.recipe["mean"]))
    tensor = prepare(image, student.recipe)
    found = detect(student, tensor, options.least)
    height, width = image.shape[1:3]
    corners = found.corners * np.array([width, height, width, height], np.float32)
    boxes = [
        {
            "label": student.classes[label],
            "score": round(float(score), 4),
            "box": [round(float(at), 1) for at in box],
        }
        for box, label, score in zip(corners, found.labels, found.scores)
    ]
    if options.draw is not None:
        _draw(options.draw, image[0], boxes, student.classes)
    said = {"width": width, "height": height, "boxes": boxes}
    return said, {next(iter(student.inputs)): tensor}


def detect(student: Student, tensor: NDArray[np.float32], least: float | None = None) -> Boxes:
    """Return what is in one prepared image (1, C, side, side)."""
    maps = student.rows(tensor)[0]
    try:
        if maps.ndim != 3 or len(maps) != len(student.classes) + 4 * int(student.post["bins"]):  # noqa: PLR2004
            raise Refusal(f"the model gives {maps.shape} for {len(student.classes)} classes", 6)
        return decode_boxes(maps, student.post, float(student.post["least"]) if least is None else least)
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(f"the manifest's decoding is malformed: {one_line(error)}", 6) from None


def show(found: Mapping[str, Any]) -> None:
    """Print class, score and box (left, top, right, bottom in pixels), one a line."""
    for one in found["boxes"]:
        left, top, right, bottom = one["box"]
        print(f"{printable(one['label'])}\t{one['score']:.3f}\t{left:.0f} {top:.0f} {right:.0f} {bottom:.0f}")
    if not found["boxes"]:
        print("nothing found")


def _draw(
    path: Path, pixels: NDArray[np.uint8], boxes: list[dict[str, Any]], classes: tuple[str, ...]
) -> None:
    from PIL import Image, ImageDraw

    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    grow = max(1, -(-480 // max(picture.size)))  # small images are enlarged: a name must be readable
    picture = picture.resize((picture.width * grow, picture.height * grow), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    line = max(1, min(picture.size) // 240)
    for one in boxes:
        colour = _COLOURS[classes.index(one["label"]) % len(_COLOURS)]
        left, top, right, bottom = (grow * at for at in one["box"])
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=line)
        words = f"{one['label']} {one['score']:.2f}".encode("latin-1", "replace").decode("latin-1")
        place = (left, top - 11 if top >= 11 else top)  # noqa: PLR2004 - the height of a line of text
        pen.rectangle(pen.textbbox(place, words), fill=colour)
        pen.text(place, words, fill=(255, 255, 255))
    try:
        picture.save(path, format="PNG")
    except OSError as error:
        raise Refusal(f"cannot write {path}: {one_line(error)}", 2) from None
