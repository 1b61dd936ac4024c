"""Read calibration inputs, and refuse those that would give a worthless model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.values.artifact import Artifact
from edgekd.values.codec import fingerprint

_MEND = "give a few hundred real inputs, prepared exactly as for training"


class Calibration:
    """Rows of whole input tensors, shape (n, *input shape) for each input; read from disk as needed."""

    def __init__(self, files: Mapping[str, Artifact], inputs: Mapping[str, tuple[int | None, ...]]) -> None:
        for name in set(files) ^ set(inputs):
            problem = "is no input of the model" if name in files else "has no calibration"
            raise DataError(f"input {name!r} {problem}", mend=f"give: {', '.join(sorted(inputs))}")
        self._arrays = {name: _array(name, files[name], shape) for name, shape in inputs.items()}
        self.fingerprint = fingerprint(dict(files))
        counts = {len(array) for array in self._arrays.values()}
        if len(counts) != 1:
            raise DataError(
                "the calibration inputs must have the same number of rows", cause=f"they have {counts}"
            )

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        for at in range(len(self)):
            yield {name: np.array(array[at]) for name, array in self._arrays.items()}


def _array(name: str, file: Artifact, shape: tuple[int | None, ...]) -> NDArray[Any]:
    path = file.verified()
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path.name} is not a readable .npy file", cause=str(error)) from error
    if array.ndim == 0 or len(array) == 0:
        raise DataError(f"the calibration of input {name!r} is empty", mend=_MEND)
    fits = array.ndim == len(shape) + 1 and all(
        own in {None, size} for size, own in zip(array.shape[1:], shape)
    )
    if not fits:
        raise DataError(
            f"input {name!r} takes rows of {shape}", cause=f"{path.name} holds {array.shape[1:]}", mend=_MEND
        )
    if array.dtype.kind == "f":
        _check_content(name, array)
    return array


def _check_content(name: str, array: NDArray[Any]) -> None:
    low, high = np.inf, -np.inf
    for row in array:
        row_low, row_high = float(np.min(row)), float(np.max(row))  # NaN if any is
        if not (np.isfinite(row_low) and np.isfinite(row_high)):
            raise DataError(f"the calibration of input {name!r} holds NaN or infinity", mend=_MEND)
        low, high = min(low, row_low), max(high, row_high)
    if low == high:
        raise DataError(
            f"the calibration of input {name!r} is constant", cause=f"every value is {low:g}", mend=_MEND
        )
