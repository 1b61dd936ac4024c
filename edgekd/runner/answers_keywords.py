"""Which word was said."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.files import Refusal, printable
from edgekd.runner.from_spectrogram import load, prepare
from edgekd.runner.student import Student


def describe() -> str:
    """Say what the bundle does, for `--help`."""
    return "Tell which word a recording says with the bundle beside this file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is asked of a keyword spotter."""
    parser.add_argument(
        "--wav", type=Path, required=True, metavar="FILE", help="of whole numbers (PCM), at any rate"
    )
    parser.add_argument("--top", type=int, default=1, metavar="K", help="print the K likeliest words")


def answer(student: Student, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the likeliest words of the recording, and the model's inputs."""
    if options.top < 1:
        raise Refusal("--top must be at least 1", 2)
    picture = prepare(load(options.wav, student.recipe), student.recipe)
    probabilities = probabilities_of(student, picture)
    likeliest = np.argsort(-probabilities, kind="stable")[: options.top]
    top = [{"word": student.classes[at], "probability": float(probabilities[at])} for at in likeliest]
    return {**top[0], "top": top}, {next(iter(student.inputs)): picture}


def show(found: Mapping[str, Any]) -> None:
    """Print the likeliest words, one a line."""
    for one in found["top"]:
        print(f"{printable(one['word'])}\t{one['probability']:.4f}")


def probabilities_of(student: Student, picture: NDArray[np.float32]) -> NDArray[np.float64]:
    """Run a prepared sound (1, 1, bins, frames); return the probability of every word."""
    logits = student.rows(picture).reshape(-1).astype(np.float64)
    if len(logits) != len(student.classes):
        raise Refusal(f"the model gives {len(logits)} outputs for {len(student.classes)} words", 6)
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())
