"""What number belongs to a row of features."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.files import Refusal, printable
from edgekd.runner.from_features import load, prepare
from edgekd.runner.student import Student


def describe() -> str:
    """Say what the bundle does, for `--help`."""
    return "Predict numbers from rows of features with the bundle beside this file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is asked of a regression."""
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--features", metavar="N,N,...", help="one row; write --features=-1,... below 0")
    given.add_argument("--csv", type=Path, metavar="FILE", help="rows of a .csv, or `features` of an .npz")


def answer(student: Student, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the values of each row by name, and the model's inputs for the first."""
    given = options.csv if options.features is None else options.features
    tensors = prepare(load(given, student.recipe), student.recipe)
    values = in_units(student.rows(tensors), student.post)
    names = [str(name) for name in student.post["names"]]
    said = [dict(zip(names, row)) for row in values.tolist()]
    return {"values": said}, {next(iter(student.inputs)): tensors[:1]}


def show(found: Mapping[str, Any]) -> None:
    """Print the value of each row, one a line; several values of a row have their names above them."""
    rows = found["values"]
    if len(rows[0]) > 1:
        print("\t".join(printable(name) for name in rows[0]))
    for row in rows:
        print("\t".join(f"{value:.6g}" for value in row.values()))


def in_units(outputs: NDArray[np.float32], post: Mapping[str, Any]) -> NDArray[np.float64]:
    """Put standardised predictions (N, K) back into the units of the targets."""
    mean, std = np.asarray(post["mean"], np.float64), np.asarray(post["std"], np.float64)
    rows = outputs.reshape(len(outputs), -1).astype(np.float64)
    if rows.shape[1] != len(mean):
        raise Refusal(f"the model gives {rows.shape[1]} outputs for {len(mean)} values", 6)
    return np.asarray(rows * std + mean)
