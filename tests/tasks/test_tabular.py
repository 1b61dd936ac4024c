"""Regression and ranking: what tables say, what is made of them, and what is refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, r2_score

from edgekd import tasks
from edgekd.errors import ConfigError, DataError
from edgekd.runner.answers_regression import in_units
from edgekd.tasks import Task
from edgekd.tasks.ranking import from_lists, ndcg
from edgekd.tasks.regression import from_table
from edgekd.values.job import TaskSection
from tests.tasks import tables

SECTIONS = {kind: TaskSection(data="drawn", kind=kind) for kind in ("regression", "ranking")}


def load(path: Path, kind: str, **settings: object) -> Task:
    section = TaskSection(data=path.name, kind=kind, **settings)
    return tasks.load(section, beside=path.parent, cache=path.parent)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def rows(count: int = 40, *, split: bool = False) -> str:
    """A .csv whose value is twice its first column."""
    heads = ["size", "age", *(["split"] if split else []), "price"]
    body = [[at, at % 7, *([int(at % 4 == 0)] if split else []), 2 * at] for at in range(count)]
    return "\n".join(",".join(map(str, row)) for row in (heads, *body))


# ---- regression


def test_diabetes_is_divided_and_its_targets_are_standardised_by_the_training_rows():
    task = tasks.load(TaskSection(data="diabetes", kind="regression"), beside=Path(), cache=Path())
    assert (len(task.train), len(task.validation), len(task.test)) == (319, 35, 88)
    assert (task.channels, task.outputs, task.classes) == (10, 1, ())
    assert abs(task.train.labels.mean()) < 1e-5
    assert task.train.labels.std() == pytest.approx(1, abs=1e-5)
    inputs = task.inputs(task.train, 1)
    np.testing.assert_allclose(inputs.mean(axis=(0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(inputs.std(axis=(0, 1)), 1, atol=1e-4)


def test_what_the_bundle_ships_puts_labels_back_into_their_units():
    table = tables.table()
    task = from_table(table, section=SECTIONS["regression"])
    found = in_units(task.test.labels, task.decoding(1))
    kept = {row.tobytes(): value for row, value in zip(table.features, table.values)}
    expected = np.stack([kept[row.tobytes()] for row in task.test.samples])
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_r2_is_scikit_learn_s_whatever_the_units():
    task = from_table(tables.table(), section=SECTIONS["regression"])
    rng = np.random.default_rng(1)
    guess = task.test.labels + rng.normal(0, 0.4, task.test.labels.shape)
    expected = r2_score(task.test.labels, guess)
    assert task.score(guess, task.test.labels) == pytest.approx(expected)
    assert task.score(3 * guess + 5, 3 * task.test.labels + 5) == pytest.approx(expected)
    assert task.score(
        np.zeros_like(guess) + task.test.labels.mean(axis=0), task.test.labels
    ) == pytest.approx(0)


def test_labels_that_are_all_alike_explain_nothing():
    task = from_table(tables.table(), section=SECTIONS["regression"])
    same = np.ones((5, 2), np.float32)
    assert task.score(same, same) == 0.0


def test_the_last_column_of_a_csv_is_its_value(tmp_path: Path):
    task = load(written(tmp_path / "a.csv", rows()), "regression")
    assert (task.columns, task.targets) == (("size", "age"), ("price",))
    prices = in_units(task.test.labels, task.decoding(1))[:, 0]
    np.testing.assert_allclose(prices, 2 * task.test.samples[:, 0], rtol=1e-5)


def test_a_column_called_split_decides_the_test_rows(tmp_path: Path):
    task = load(written(tmp_path / "a.csv", rows(split=True)), "regression")
    assert sorted(task.test.samples[:, 0].tolist()) == list(range(0, 40, 4))
    assert task.columns == ("size", "age")


def test_an_npz_gives_the_same_task_as_its_csv(tmp_path: Path):
    table = np.array([[at, at % 7] for at in range(40)], np.float32)
    names = {"columns": np.array(["size", "age"]), "targets": np.array(["price"])}
    np.savez(tmp_path / "a.npz", features=table, values=2 * table[:, 0], **names)
    first = load(tmp_path / "a.npz", "regression")
    assert first.fingerprint == load(written(tmp_path / "a.csv", rows()), "regression").fingerprint
    np.savez(tmp_path / "b.npz", features=table, values=np.stack([table[:, 0]] * 3, axis=1))
    second = load(tmp_path / "b.npz", "regression")
    assert (second.columns, second.outputs) == (("column0", "column1"), 3)


def test_a_constant_feature_is_no_division_by_nought():
    table = tables.table()
    features = table.features.copy()
    features[:, 1] = 0.1  # its deviation is what rounding leaves
    task = from_table(dataclasses.replace(table, features=features), section=SECTIONS["regression"])
    assert np.abs(task.inputs(task.train, 1)).max() < 100


def test_validation_rows_can_come_from_the_test():
    section = TaskSection(data="drawn", kind="regression", validation_from="test", validation=0.5)
    task = from_table(tables.table(), section=section)
    assert (len(task.train), len(task.validation), len(task.test)) == (64, 8, 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3,x\n", "'b' is 'x'"),
        ("a,b\n1,2\n3,\n", "'b' is ''"),
        ("a,b\n1,2\n3\n", "it has 1 cells"),
        ("a,b\n1,inf\n", "'b' is 'inf'"),
        ("a,b\n1,1e60\n", "'b' is '1e60'"),
        ("a,a\n1,2\n", "is no table"),
        ("a,b\n", "is no table"),
        ("", "is no table"),
        ("a\n1\n2\n", "has 1 columns"),
        ("a,b\n1,2\n3,4\n", "too small"),
        ("a,b\n" + "1,2\n" * 40, "is the same in every training row"),
        ("a,split,b\n" + "1,2,3\n" * 40, "split of .* is wrong"),
    ],
)
def test_a_csv_that_cannot_serve_is_refused(tmp_path: Path, text: str, words: str):
    with pytest.raises(DataError) as caught:
        load(written(tmp_path / "a.csv", text), "regression")
    said = f"{caught.value.what} {caught.value.cause}"
    assert re.search(words, said), said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"values": np.arange(30.0)}, "`features` of .* is not there"),
        ({"features": np.ones((30, 2, 2)), "values": np.arange(30.0)}, "shape"),
        ({"features": np.ones((30, 2)), "values": np.arange(29.0)}, "30 rows of features and 29"),
        ({"features": np.ones((30, 2)), "values": np.full(30, np.nan)}, "not a finite number"),
        ({"features": np.array([["a"] * 2] * 30), "values": np.arange(30.0)}, "<U1"),
        (
            {"features": np.ones((30, 2)), "values": np.arange(30.0), "columns": np.array(["a"])},
            "1 names for 2",
        ),
        ({"features": np.array([{"run": "me"}] * 3, object), "values": np.arange(3.0)}, "cannot be read"),
    ],
)
def test_an_npz_that_cannot_serve_is_refused(tmp_path: Path, content: dict[str, np.ndarray], words: str):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(DataError, match=words):
        load(tmp_path / "a.npz", "regression")


@pytest.mark.parametrize("kind", ["regression", "ranking"])
def test_data_that_is_not_there_names_what_would_do(tmp_path: Path, kind: str):
    with pytest.raises(DataError, match="cannot be read") as caught:
        load(tmp_path / "nothing.csv", kind)
    assert {"regression": "diabetes", "ranking": "digits-retrieval"}[kind] in caught.value.mend


# ---- ranking


def test_the_digits_are_lists_of_fifty_with_a_few_of_the_same_digit():
    task = tasks.load(TaskSection(data="digits-retrieval", kind="ranking"), beside=Path(), cache=Path())
    assert task.train.samples.shape[1:] == (50, 128)
    assert (task.resolution, task.outputs, task.classes) == (50, 1, ())
    assert 0.05 < task.test.labels.mean() < 0.15
    assert (task.test.samples[:, 0, :64] == task.test.samples[:, 7, :64]).all()


def test_ndcg_is_scikit_learn_s_ties_included():
    rng = np.random.default_rng(0)
    for _ in range(20):
        relevance = rng.integers(0, 4, 15)
        relevance[0] = 3
        scores = rng.normal(size=15).round(1)  # some are equal
        expected = ndcg_score([2.0**relevance - 1], [scores], k=10)
        assert ndcg(scores, relevance, 10) == pytest.approx(expected)


def test_rows_that_fill_a_list_up_are_in_no_score():
    relevance = np.array([2, 0, 1, -1, -1])
    scores = np.array([3.0, 1.0, 2.0, 9.0, np.nan])
    assert ndcg(scores, relevance, 10) == 1.0


def test_lists_of_a_csv_are_its_queries_and_short_ones_are_filled_up(tmp_path: Path):
    lines = ["query,size,relevance"]
    for query in range(30):
        count = 3 + query % 3
        lines += [f"{query},{100 * query + at},{int(at == 1)}" for at in range(count)]
    task = load(written(tmp_path / "a.csv", "\n".join(lines)), "ranking")
    assert task.columns == ("size",)
    assert task.resolution == 5
    for sample, labels in zip(task.test.samples, task.test.labels):
        query = int(sample[0, 0]) // 100
        count = 3 + query % 3
        assert labels.tolist() == [0, 1, 0, 0, 0][:count] + [-1] * (5 - count)
        assert sample[:, 0].tolist() == [100 * query + at % count for at in range(5)]


def test_rows_that_fill_up_do_not_count_in_the_mean_of_the_features(tmp_path: Path):
    lists = tables.lists()
    absent = np.repeat((lists.relevance == -1)[..., None], 3, axis=2)
    other = dataclasses.replace(lists, features=np.where(absent, 1e6, lists.features).astype(np.float32))
    section = SECTIONS["ranking"]
    assert from_lists(other, section=section).mean == from_lists(lists, section=section).mean


def test_lists_whose_items_are_all_alike_are_left_out():
    lists = tables.lists()
    relevance = lists.relevance.copy()
    relevance[3], relevance[4] = 0, 2
    task = from_lists(dataclasses.replace(lists, relevance=relevance), section=SECTIONS["ranking"])
    assert len(task.train) + len(task.validation) + len(task.test) == 38


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"relevance": np.ones((30, 3))}, "`features` of .* is not there"),
        (
            {"features": np.ones((30, 3, 2)), "relevance": np.ones((30, 4))},
            r"\(30, 4\), the lists are \(30, 3\)",
        ),
        ({"features": np.ones((30, 3, 2)), "relevance": np.full((30, 3), 0.5)}, "no whole number"),
        ({"features": np.ones((30, 3, 2)), "relevance": np.full((30, 3), -2)}, "is -2"),
        ({"features": np.ones((30, 3, 2)), "relevance": np.full((30, 3), 40)}, "is 40"),
        ({"features": np.ones((30, 3, 2)), "relevance": np.ones((30, 3))}, "too small"),
    ],
)
def test_lists_that_cannot_serve_are_refused(tmp_path: Path, content: dict[str, np.ndarray], words: str):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(DataError, match=words):
        load(tmp_path / "a.npz", "ranking")


def test_a_csv_without_queries_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="has the columns size, age, price"):
        load(written(tmp_path / "a.csv", rows()), "ranking")


def test_an_embedding_of_one_number_is_refused():
    with pytest.raises(ConfigError, match="embedding"):
        TaskSection(data="x", kind="recognition", embedding=1)
