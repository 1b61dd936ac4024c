"""Read tables of numbers, and divide them; what regression and ranking share."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.tasks.datasets import TEST_SHARE, Parts
from edgekd.values.job import TaskSection

Columns = dict[str, NDArray[np.float64]]  # by name, (N,) each, finite
Flags = NDArray[np.bool_]

_LIMIT_BYTES = 1 << 30
_LARGEST = float(np.finfo(np.float32).max)
SPLIT = "split"  # a column: 0 trains, 1 is for the test


def file_of(data: str, beside: Path, built_in: Mapping[str, object], forms: str) -> Path:
    """Return the .npz or .csv that `[task] data` names.

    Raises:
        DataError: it is neither, or is not there.

    """
    path = beside / Path(data).expanduser()
    if path.is_file() and path.suffix in (".npz", ".csv"):
        return path
    raise DataError(
        f"[task] data = {data!r} cannot be read",
        cause=f"{path} is neither an .npz nor a .csv" if path.exists() else f"there is no {path}",
        mend=f"give {forms}, or one of: {', '.join(built_in)}",
    )


def read_csv(path: Path) -> Columns:
    """Read a .csv of numbers whose first line names its columns.

    Raises:
        DataError: a cell is no finite number, a row is too short or too long, or two columns share a name.

    """
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            raise DataError(f"{path} is larger than {_LIMIT_BYTES >> 30} GiB", mend="give an .npz")
        with path.open(encoding="utf-8-sig", newline="") as file:
            heads, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read", cause=str(error)[:200], mend="give UTF-8 text") from error
    names = [name.strip() for name in heads]
    if len(set(names)) != len(names) or not all(names) or not rows:
        raise DataError(
            f"{path} is no table", mend="name every column in the first line, no two alike, and give rows"
        )
    table = np.array([[_number(path, row, at, names) for at in range(len(names))] for row in rows])
    return {name: table[:, at] for at, name in enumerate(names)}


def numbers(
    path: Path, arrays: Mapping[str, NDArray[np.generic]], name: str, axes: int
) -> NDArray[np.float32]:
    """Return an array of an .npz as float32.

    Raises:
        DataError: it is not there, of another number of axes, empty, or not of finite numbers.

    """
    found = arrays.get(name)
    if found is None or found.ndim != axes or found.dtype.kind not in "fiu" or not found.size:
        what = "not there" if found is None else f"{found.dtype} of shape {found.shape}"
        raise DataError(f"the array `{name}` of {path} is {what}", mend=f"give numbers of {axes} axes")
    with np.errstate(over="ignore"):  # refused below
        rows: NDArray[np.float32] = found.astype(np.float32)
    if not np.isfinite(rows).all():
        at = tuple(int(place) for place in np.argwhere(~np.isfinite(rows))[0])
        raise DataError(
            f"`{name}` of {path} holds what is not a finite number",
            cause=f"at {at}",
            mend="fill in what is missing, or leave the row out",
        )
    return rows


def names_of(path: Path, arrays: Mapping[str, NDArray[np.generic]], key: str, count: int) -> tuple[str, ...]:
    """Return the names that an .npz gives its columns, or numbers.

    Raises:
        DataError: there are not as many as columns, or two are alike.

    """
    if key not in arrays:
        return tuple(f"{key.rstrip('s')}{at}" for at in range(count))
    found = tuple(str(name) for name in np.atleast_1d(arrays[key]).tolist())
    if len(found) != count or len(set(found)) != count:
        raise DataError(f"`{key}` of {path} gives {len(found)} names for {count} columns")
    return found


def divide(name: str, test: Flags | None, count: int, section: TaskSection, seed: int) -> Parts:
    """Set aside rows for test and validation, drawn from the seed where the data brings no split.

    Raises:
        DataError: there are too few rows.

    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    rows = np.arange(count, dtype=np.int64)
    chosen = np.zeros(count, np.bool_) if test is None else test
    if test is None:
        chosen[rng.permutation(count)[: math.floor(TEST_SHARE * count + 0.5)]] = True
    held, rest = rows[chosen], rows[~chosen]
    source = held if section.validation_from == "test" else rest
    kept = math.floor(section.validation * len(source) + 0.5)
    validation = np.sort(rng.permutation(source)[:kept])
    train, held = (np.setdiff1d(part, validation, assume_unique=True) for part in (rest, held))
    if min(len(train), len(validation), len(held)) < 2:  # noqa: PLR2004 - one has no spread
        raise DataError(
            f"{name} is too small",
            cause=f"{count} rows leave {len(train)}, {len(validation)} and {len(held)} to train, choose and test",
            mend="give more rows",
        )
    return Parts(train=train, validation=validation, test=held)


def statistics(rows: NDArray[np.floating]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the last axis' columns; of a constant one the deviation is 1."""
    flat = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
    mean, std = flat.mean(axis=0), flat.std(axis=0)
    std[std <= 1e-6 * np.abs(mean)] = 1.0  # what rounding left of a constant
    std[std == 0] = 1.0
    return _short(mean), _short(std)


def _short(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.7g}") for value in values)


def _number(path: Path, row: list[str], at: int, names: list[str]) -> float:
    try:
        value = float(row[at]) if len(row) == len(names) else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > _LARGEST:
        whole = len(row) == len(names)
        cause = f"{names[at]!r} is {row[at][:40]!r}" if whole else f"it has {len(row)} cells"
        raise DataError(
            f"a row of {path} is not of {len(names)} finite numbers",
            cause=f"{','.join(row)[:80]}: {cause}",
            mend="fill in what is missing, or leave the row out",
        )
    return value
