from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.values.artifact import Artifact
from edgekd.values.model import Signature, TensorSpec
from edgekd.worker.rows import answered, given_of, read_rows

SHAPES = {"sum": (1,), "next_sum": (1,)}


def adding(row: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {"sum": row["sum"] + row["x"], "next_sum": row["sum"] + row["x"]}


def column(*values: float) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)[:, None]


def sums(x: NDArray[np.float32], start: NDArray[np.float32]) -> list[float]:
    return [float(answer["sum"][0]) for answer in answered(adding, given_of({"x": x, "sum": start}, SHAPES))]


def test_a_state_with_fewer_rows_is_handed_on_and_starts_anew_with_each_sequence():
    assert sums(column(1, 2, 3, 1, 2, 3), column(0, 100)) == [1, 3, 6, 101, 103, 106]


def test_a_state_with_a_row_an_inference_is_taken_as_it_is():
    assert sums(column(1, 2, 3), column(0, 100, 200)) == [1, 102, 203]


def test_a_runtime_that_writes_over_its_last_answer_does_not_change_the_state():
    buffer = np.zeros(1, np.float32)

    def reusing(row: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        buffer[:] = 0  # as a runtime may, before it reads
        buffer[:] = row["sum"] + row["x"]
        return {"sum": buffer, "next_sum": buffer}

    given = given_of({"x": column(1, 2, 3), "sum": column(0)}, SHAPES)
    assert [float(answer["sum"][0]) for answer in answered(reusing, given)] == [1, 3, 6]


@pytest.mark.parametrize(
    ("rows", "outputs"),
    [
        (2, SHAPES),  # 5 rows are no sequences of two
        (0, SHAPES),
        (1, {"sum": (1,)}),  # nothing replaces it
        (1, {"next_sum": (2,)}),  # what would has another shape
    ],
)
def test_rows_that_do_not_pair_off_are_refused(rows: int, outputs: dict[str, tuple[int | None, ...]]):
    with pytest.raises(DataError, match="same number of rows"):
        given_of({"x": column(1, 2, 3, 4, 5), "sum": np.zeros((rows, 1), np.float32)}, outputs)


def test_files_say_the_same(tmp_path: Path):
    files = {"x": column(1, 2, 3, 4), "sum": column(0, 10)}
    for name, array in files.items():
        np.save(tmp_path / f"{name}.npy", array)
    spec = {name: TensorSpec(name=name, dtype="float32", shape=(1,)) for name in ("x", "sum", "next_sum")}
    signature = Signature(inputs=(spec["x"], spec["sum"]), outputs=(spec["sum"], spec["next_sum"]))
    given = read_rows({name: Artifact.of(tmp_path / f"{name}.npy") for name in files}, signature)
    assert (given.count, given.states) == (4, {"sum": 2})
    assert [float(answer["sum"][0]) for answer in answered(adding, given)] == [1, 3, 13, 17]
