"""What an image is like: its embedding, and how near it lies to another's."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.files import Refusal
from edgekd.runner.from_image import load, prepare
from edgekd.runner.student import Student


def describe() -> str:
    """Say what the bundle does, for `--help`."""
    return "Embed an image, or compare it with another, with the bundle beside this file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is asked of a recognition."""
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="PNG, JPEG, BMP, ...")
    parser.add_argument("--against", type=Path, metavar="FILE", help="an image to compare it with")


def answer(student: Student, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the embedding of length 1, the cosine similarity of two images, and the model's inputs."""
    paths = [options.image, *([options.against] if options.against else [])]
    tensors = [prepare(load(path, len(student.recipe["mean"])), student.recipe) for path in paths]
    found = embeddings(student.rows(np.concatenate(tensors)))
    said: dict[str, Any] = {"embedding": found[0].tolist()}
    if options.against:
        said["similarity"] = float(found[0] @ found[1])
    return said, {next(iter(student.inputs)): tensors[0]}


def show(found: Mapping[str, Any]) -> None:
    """Print the embedding, and below it the similarity where there is something to compare with."""
    print(" ".join(f"{value:.4f}" for value in found["embedding"]))
    if "similarity" in found:
        print(f"similarity\t{found['similarity']:.4f}")


def embeddings(outputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scale outputs (N, D) to length 1."""
    rows = outputs.reshape(len(outputs), -1).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise Refusal("the model gives an embedding without a direction", 6)
    return np.asarray(rows / lengths)
