"""Rows of numbers: read from a command line or a file, and standardised."""

import csv
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.files import Refusal, one_line

_TABLE_LIMIT_BYTES = 64 << 20
_TABLE_FAILURES = (
    OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, csv.Error, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


def prepare(rows: NDArray[Any], spec: Mapping[str, Any] | object) -> NDArray[np.float32]:
    """Standardise rows of features: (..., F) in, float32 of the same shape out.

    Raises:
        ValueError: they are not numbers, or not as many as the recipe has columns.

    """
    recipe = spec if isinstance(spec, Mapping) else vars(spec)
    mean, std = (np.asarray(recipe[name], np.float64) for name in ("mean", "std"))
    if rows.dtype.kind not in "fiu" or rows.ndim < 2 or rows.shape[-1] != len(mean):  # noqa: PLR2004 - (N, F)
        raise ValueError(f"features must be numbers (N, {len(mean)}), not {rows.dtype} {rows.shape}")
    return np.asarray((rows - mean) / std, np.float32)


def load(given: Path | str, recipe: Mapping[str, Any]) -> NDArray[np.float32]:
    """Read rows (N, F), in the recipe's order of columns.

    Args:
        given: one row as text, "0.1,2,-3"; or a file: an .npz with the array `features`, or a .csv, whose first line
            names its columns or is the first row.
        recipe: what `preprocess.json` holds.

    Raises:
        Refusal: it cannot be read, or is not of these columns, or holds a value that is not finite.

    """
    names = [str(name) for name in recipe["names"]]
    try:
        rows = _in_order(_rows_of(given), names)
    except _TABLE_FAILURES as error:
        raise Refusal(f"cannot read features of {given}: {one_line(error)}", 2) from None
    if rows.ndim != 2 or rows.shape[1] != len(names) or not len(rows):  # noqa: PLR2004 - (N, F)
        raise Refusal(f"{given} gives features of shape {rows.shape}: (N, {len(names)}) are needed", 2)
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise Refusal(f"{names[column]} of row {row + 1} of {given} is not a finite number", 2)
    return rows


def _rows_of(given: Path | str) -> list[list[str]] | NDArray[Any]:
    if isinstance(given, str):
        return [given.split(",")]
    if given.stat().st_size > _TABLE_LIMIT_BYTES:
        raise ValueError(f"it is larger than {_TABLE_LIMIT_BYTES >> 20} MiB")
    if given.suffix == ".npz":
        with given.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return np.asarray(archive["features"])
    text = given.read_text(encoding="utf-8-sig")
    return [row for row in csv.reader(io.StringIO(text)) if row]


def _in_order(rows: list[list[str]] | NDArray[Any], names: list[str]) -> NDArray[np.float32]:
    """Pick the columns that a first line names; without one they are taken as they come."""
    if isinstance(rows, np.ndarray):
        return np.asarray(rows, np.float32)
    heads = [name.strip() for name in rows[0]] if rows else []
    if not set(names) <= set(heads):
        lacking = [name for name in names if name not in heads]
        if any(not _is_number(head) for head in heads):
            raise ValueError(f"there is no column {lacking[0]!r}")
        return np.asarray(rows, np.float32)
    places = [heads.index(name) for name in names]
    return np.asarray([[row[at] for at in places] for row in rows[1:]], np.float32).reshape(-1, len(names))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
