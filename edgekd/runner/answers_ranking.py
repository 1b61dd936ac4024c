"""Which items of a list come first."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.files import Refusal
from edgekd.runner.from_features import load, prepare
from edgekd.runner.student import Student


def describe() -> str:
    """Say what the bundle does, for `--help`."""
    return "Put the items of a list in order with the bundle beside this file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is asked of a ranking."""
    parser.add_argument(
        "--list", type=Path, required=True, metavar="FILE",
        help="a row of features an item: a .csv, or `features` of an .npz",
    )  # fmt: skip
    parser.add_argument("--top", type=int, default=0, metavar="K", help="print the first K items only")


def answer(student: Student, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the items in order, counted from 1 as they were given, and the model's inputs."""
    if options.top < 0:
        raise Refusal("--top must be at least 0", 2)
    items = prepare(load(options.list, student.recipe), student.recipe)
    scores, first = scores_of(student, items)
    order = np.argsort(-scores, kind="stable")[: options.top or None]
    return {"order": [{"item": int(at) + 1, "score": float(scores[at])} for at in order]}, first


def show(found: Mapping[str, Any]) -> None:
    """Print the items in order, one a line."""
    for one in found["order"]:
        print(f"{one['item']}\t{one['score']:.4f}")


def scores_of(
    student: Student, items: NDArray[np.float32]
) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
    """Score prepared items (N, F), and return the first inference's inputs too.

    An item's score depends on its own row alone: a list that is longer than the model takes is scored in parts, a
    shorter one is filled up.
    """
    ((name, shape),) = student.inputs.items()
    length = int(shape[1])
    parts = []
    for start in range(0, len(items), length):
        part = items[start : start + length]
        full = np.concatenate([part, np.zeros((length - len(part), *items.shape[1:]), np.float32)])
        parts.append((len(part), {name: full[None]}))
    found = [next(iter(student.infer(given).values())).reshape(-1)[:count] for count, given in parts]
    return np.concatenate(found).astype(np.float64), parts[0][1]
