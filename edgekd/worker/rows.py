"""Feed rows of .npy files to a session and write its answers as .npy files, one row at a time in memory."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError, ModelError, ResourcesExhausted
from edgekd.timing.session import Tensors
from edgekd.values.artifact import Artifact
from edgekd.values.model import Signature, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Given:
    """Rows of inputs, and which of them are states: by name, how many rows a state is handed on for."""

    count: int
    rows: Iterator[Tensors]
    states: Mapping[str, int]


def read_rows(inputs: Mapping[str, Artifact], signature: Signature) -> Given:
    """Open the inputs of a session.

    An input with fewer rows than the others is a state: a row a sequence, which the output `next_NAME` replaces from
    inference to inference of that sequence.

    Raises:
        DataError: a file is missing, no .npy, or not of the shape and type the model takes.

    """
    specs = signature.inputs
    for name in set(inputs) ^ {spec.name for spec in specs}:
        problem = "is no input of the model" if name in inputs else "has no .npy file"
        raise DataError(f"input {name!r} {problem}", mend=f"give: {', '.join(spec.name for spec in specs)}")
    arrays = {spec.name: _array(inputs[spec.name], spec) for spec in specs}
    return given_of(arrays, {spec.name: spec.shape for spec in signature.outputs})


def given_of(arrays: Tensors, outputs: Mapping[str, tuple[int | None, ...]]) -> Given:
    """Take arrays with a row an inference, and states with a row a sequence.

    Args:
        arrays: by the names of the inputs, (n, *whole shape).
        outputs: whole shapes by name.

    Raises:
        DataError: there are no rows, or as many as no sequence has.

    """
    count = max(map(len, arrays.values()))
    states = {}
    for name, array in arrays.items():
        handed_on = (
            len(array) > 0 and count % len(array) == 0 and outputs.get(f"next_{name}") == array.shape[1:]
        )
        if len(array) < count and handed_on:
            states[name] = count // len(array)
        elif len(array) < count or not count:
            found = {len(one) for one in arrays.values()}
            raise DataError(
                "the inputs must have the same number of rows, at least one", cause=f"they have {found}"
            )
    rows = (
        {name: np.array(array[at // states.get(name, 1)]) for name, array in arrays.items()}
        for at in range(count)
    )
    return Given(count=count, rows=rows, states=states)


def answered(
    run: Callable[[Tensors], Mapping[str, NDArray[Any]]], given: Given
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Run row after row; a state goes from one to the next, and starts anew with each sequence."""
    last: Mapping[str, NDArray[Any]] = {}
    for at, row in enumerate(given.rows):
        handed_on = {name: last[f"next_{name}"] for name, length in given.states.items() if at % length}
        answer = run({**row, **handed_on})
        last = {name: np.array(array) for name, array in answer.items()} if given.states else {}
        yield answer


def write_rows(
    folder: Path, count: int, answers: Iterator[Mapping[str, NDArray[Any]]]
) -> dict[str, Artifact]:
    """Write the answers to `count` rows, one .npy file an output.

    Raises:
        ModelError: an output changes its shape from row to row.
        ResourcesExhausted: the disk is full.

    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    try:
        with ExitStack() as stack:
            files: dict[str, _RowFile] = {}
            for row in answers:
                for at, (name, array) in enumerate(row.items()):
                    if name not in files:
                        paths[name] = folder / f"output_{at}.npy"  # an output's own name may hold anything
                        files[name] = _RowFile(stack.enter_context(paths[name].open("wb")), count, array)
                    files[name].write(name, array)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        mend = "free some space and give the same command again"
        raise ResourcesExhausted(f"cannot write {folder}", cause=str(error), mend=mend) from error
    return {name: Artifact.of(path) for name, path in paths.items()}


class _RowFile:
    """A .npy file of known length, written row by row."""

    def __init__(self, file: BinaryIO, count: int, first: NDArray[Any]) -> None:
        self._file, self._shape, self._dtype = file, first.shape, first.dtype
        header = np.lib.format.header_data_from_array_1_0(first)
        np.lib.format.write_array_header_1_0(
            file, {**header, "fortran_order": False, "shape": (count, *first.shape)}
        )

    def write(self, name: str, row: NDArray[Any]) -> None:
        if row.shape != self._shape or row.dtype != self._dtype:
            mend = "give inputs of a fixed shape"
            raise ModelError(f"output {name!r} changes its shape from row to row", mend=mend)
        self._file.write(row.tobytes())


def _array(artifact: Artifact, spec: TensorSpec) -> NDArray[Any]:
    path = artifact.verified()
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path.name} is not a readable .npy file", cause=str(error)) from error
    if array.ndim == 0 or str(array.dtype) != spec.dtype or array.shape[1:] != spec.shape:
        found = f"{array.dtype} rows of {array.shape[1:]}"
        raise DataError(
            f"input {spec.name!r} takes {spec.dtype} rows of {spec.shape}", cause=f"{path.name} holds {found}"
        )
    return array
