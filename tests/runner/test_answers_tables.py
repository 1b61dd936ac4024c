"""What bundles for regression and ranking say of rows of features."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekd.runner import answers_ranking, answers_regression
from edgekd.runner.files import Refusal
from edgekd.runner.from_features import load, prepare

RECIPE = {"kind": "features", "names": ["size", "age"], "mean": [10.0, 0.0], "std": [2.0, 1.0]}
POST = {"names": ["price", "weight"], "mean": [100.0, 5.0], "std": [10.0, 2.0]}


def student(length: int = 0) -> SimpleNamespace:
    """Stand in for a bundle: a row's values are its prepared features, an item's score is their sum."""
    shape = (1, length, 2) if length else (1, 2)

    def infer(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert given["features"].shape == shape
        assert given["features"].dtype == np.float32
        return {"logits": given["features"].sum(axis=-1)}

    def rows(tensors: np.ndarray) -> np.ndarray:
        return tensors

    return SimpleNamespace(recipe=RECIPE, post=POST, inputs={"features": shape}, infer=infer, rows=rows)


def asked(part: Any, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    part.add_arguments(parser)
    return parser.parse_args(list(words))


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_is_answered_in_the_units_of_the_targets(capsys: pytest.CaptureFixture[str]):
    found, inputs = answers_regression.answer(student(), asked(answers_regression, "--features", "14,-3"))
    assert found == {"values": [{"price": 120.0, "weight": -1.0}]}
    assert json.loads(json.dumps(found)) == found
    np.testing.assert_array_equal(inputs["features"], np.array([[2.0, -3.0]], np.float32))
    answers_regression.show(found)
    assert capsys.readouterr().out == "price\tweight\n120\t-1\n"


def test_one_value_is_printed_bare(capsys: pytest.CaptureFixture[str]):
    answers_regression.show({"values": [{"price": 12.5}, {"price": 7.0}]})
    assert capsys.readouterr().out == "12.5\n7\n"


@pytest.mark.parametrize(
    "text", ["size,age\n14,-3\n10,1\n", "age,note,size\n-3,x,14\n1,y,10\n", "14,-3\n10,1\n"]
)
def test_columns_of_a_csv_are_found_by_name_or_taken_as_they_come(tmp_path: Path, text: str):
    path = written(tmp_path / "rows.csv", text)
    found, _ = answers_regression.answer(student(), asked(answers_regression, "--csv", str(path)))
    assert [row["price"] for row in found["values"]] == [120.0, 100.0]


def test_an_npz_is_read_as_well(tmp_path: Path):
    np.savez(tmp_path / "rows.npz", features=np.array([[14, -3]], np.int64))
    assert load(tmp_path / "rows.npz", RECIPE).tolist() == [[14.0, -3.0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("size,weight\n1,2\n", "no column 'age'"),
        ("size,age\n1\n", "cannot read"),
        ("size,age\n1,x\n", "cannot read"),
        ("size,age\n1,nan\n", "age of row 1 .* not a finite number"),
        ("1,2,3\n", r"\(1, 3\)"),
        ("size,age\n", r"\(0, 2\)"),
        ("", "needed"),
    ],
)
def test_a_csv_of_something_else_is_refused(tmp_path: Path, text: str, words: str):
    path = written(tmp_path / "rows.csv", text)
    with pytest.raises(Refusal, match=words) as caught:
        load(path, RECIPE)
    assert caught.value.exit_code == 2


def test_files_that_are_no_tables_are_refused(tmp_path: Path):
    np.savez(tmp_path / "other.npz", rows=np.ones((2, 2)))
    np.savez(tmp_path / "objects.npz", features=np.array([{"run": "me"}], object))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:90])
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("other.npz", "objects.npz", "torn.npz", "bytes.csv", "missing.csv"):
        with pytest.raises(Refusal, match="cannot read features"):
            load(tmp_path / name, RECIPE)
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.ones((2, 2)))
    with pytest.raises(Refusal, match="cannot read features"):
        load(tmp_path / "array.npz", RECIPE)
    with pytest.raises(Refusal, match="cannot read features of 1,two"):
        load("1,two", RECIPE)


def test_preparation_takes_numbers_of_the_recipe_s_columns_only():
    rows = np.array([[14, -3]])
    np.testing.assert_array_equal(prepare(rows, RECIPE), np.array([[2, -3]], np.float32))
    assert prepare(np.zeros((5, 4, 2)), RECIPE).shape == (5, 4, 2)
    for wrong in (np.zeros((1, 3)), np.zeros(2), np.array([["a", "b"]])):
        with pytest.raises(ValueError, match="features must be numbers"):
            prepare(wrong, RECIPE)


def test_a_model_of_other_values_is_refused():
    with pytest.raises(Refusal, match="3 outputs for 2 values") as caught:
        answers_regression.in_units(np.zeros((1, 3), np.float32), POST)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("length", [3, 4, 10])
def test_a_list_is_ordered_whether_it_is_shorter_or_longer_than_the_model_takes(
    tmp_path: Path, length: int, capsys: pytest.CaptureFixture[str]
):
    path = written(tmp_path / "items.csv", "size,age\n10,1\n10,4\n10,-2\n10,3\n")
    found, inputs = answers_ranking.answer(student(length), asked(answers_ranking, "--list", str(path)))
    assert [one["item"] for one in found["order"]] == [2, 4, 1, 3]
    assert [one["score"] for one in found["order"]] == [4.0, 3.0, 1.0, -2.0]
    assert inputs["features"].shape == (1, length, 2)
    answers_ranking.show(found)
    assert capsys.readouterr().out.splitlines()[0] == "2\t4.0000"


def test_the_first_of_a_list_can_be_asked_for(tmp_path: Path):
    path = written(tmp_path / "items.csv", "10,1\n10,4\n10,-2\n")
    options = asked(answers_ranking, "--list", str(path), "--top", "2")
    assert len(answers_ranking.answer(student(5), options)[0]["order"]) == 2
    with pytest.raises(Refusal, match="--top"):
        answers_ranking.answer(student(5), asked(answers_ranking, "--list", str(path), "--top", "-1"))
