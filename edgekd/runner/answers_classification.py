"""What an image shows."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.files import Refusal, printable
from edgekd.runner.from_image import load, prepare
from edgekd.runner.student import Student


def describe() -> str:
    """Say what the bundle does, for `--help`."""
    return "Classify an image with the bundle beside this file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is asked of a classifier."""
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="PNG, JPEG, BMP, ...")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="print the K likeliest classes")


def answer(student: Student, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the likeliest classes of the image, and the model's inputs."""
    if options.top < 1:
        raise Refusal("--top must be at least 1", 2)
    tensor = prepare(load(options.image, len(student.recipe["mean"])), student.recipe)
    probabilities = softmax(logits_of(student, tensor))[0]
    likeliest = np.argsort(-probabilities, kind="stable")[: options.top]
    top = [{"label": student.classes[at], "probability": float(probabilities[at])} for at in likeliest]
    return {**top[0], "top": top}, {next(iter(student.inputs)): tensor}


def show(found: Mapping[str, Any]) -> None:
    """Print the likeliest classes, one a line."""
    for one in found["top"]:
        print(f"{printable(one['label'])}\t{one['probability']:.4f}")


def classify(student: Student, images: NDArray[np.uint8]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return the label of each image (N, H, W, C), and the probability of every class (N, classes)."""
    probabilities = softmax(logits_of(student, prepare(images, student.recipe)))
    return tuple(student.classes[at] for at in probabilities.argmax(axis=1)), probabilities


def logits_of(student: Student, tensors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Run prepared images (N, C, H, W); return (N, classes)."""
    logits = student.rows(tensors).reshape(len(tensors), -1)
    if logits.shape[1] != len(student.classes):
        raise Refusal(f"the model gives {logits.shape[1]} outputs for {len(student.classes)} classes", 6)
    return logits.astype(np.float64)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of every class, (N, classes), from logits of that shape."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
