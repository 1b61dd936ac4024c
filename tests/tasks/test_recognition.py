"""Recognition: which classes are learnt from and which judge, and what a neighbour is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekd import tasks
from edgekd.errors import DataError
from edgekd.tasks.recognition import ImageRecognition
from edgekd.values.job import TaskSection


def load(data: Path | str, **settings: object) -> ImageRecognition:
    section = TaskSection(data=str(data), kind="recognition", **settings)
    found = tasks.load(section, beside=Path(), cache=Path(str(data)).parent / "cache")
    assert isinstance(found, ImageRecognition)
    return found


def faces(root: Path, people: list[str], each: int = 3) -> Path:
    """Draw images whose grey is the number of their person."""
    for number, name in enumerate(people):
        (root / name).mkdir(parents=True)
        for at in range(each):
            pixels = np.full((8, 8), 10 * number + at, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{at}.png")
    return root


def people(count: int) -> list[str]:
    return [f"person {at:02}" for at in range(count)]


def test_pairs_are_hard_for_pixels_and_single_digits_are_not():
    pairs, digits = load("digit-pairs", flip=False), load("digits", flip=False)
    for task, low, high in ((pairs, 0.0, 0.2), (digits, 0.99, 1.0)):
        pixels = task.inputs(task.test, task.resolution).reshape(len(task.test), -1)
        assert low <= task.score(pixels, task.test.labels) <= high
    assert len(pairs.train) + len(pairs.validation) + len(pairs.test) == 800


def test_classes_are_divided_and_training_numbers_its_own_from_0(tmp_path: Path):
    task = load(faces(tmp_path / "faces", people(10)), validation=0.3)
    assert len(task.classes) == 5
    for split in (task.train, task.validation, task.test):
        for sample, label in zip(split.samples, split.labels):
            number = int(sample[0, 0, 0]) // 10
            seen = label < len(task.classes)
            assert not seen or task.classes[label] == people(10)[number]
    assert sorted(np.unique(task.train.labels)) == list(range(5))
    assert len(task.validation) == 6
    assert len(task.test) == 9


def test_a_split_that_the_data_brings_decides_the_classes_of_the_test(tmp_path: Path):
    names = people(9)
    faces(tmp_path / "faces/train", names[:6])
    faces(tmp_path / "faces/test", names[6:])
    task = load(tmp_path / "faces")
    assert set(task.classes) < set(names[:6])
    assert len(task.classes) == 4
    assert len(task.test) == 9


def test_the_width_of_the_embedding_is_part_of_what_names_a_task(tmp_path: Path):
    root = faces(tmp_path / "faces", people(8))
    assert load(root).outputs == 64
    assert load(root, embedding=16).fingerprint != load(root).fingerprint


def test_recall_counts_rows_whose_nearest_other_is_of_their_class(tmp_path: Path):
    task = load(faces(tmp_path / "faces", people(8)))
    labels = np.array([0, 0, 1, 1])
    apart = np.array([[1.0, 0.0], [9.0, 1.0], [0.0, 1.0], [0.1, 5.0]])
    assert task.score(apart, labels) == 1.0
    crossed = np.array([[1.0, 0.0], [0.0, 1.0], [9.0, 1.0], [0.1, 5.0]])
    assert task.score(crossed, labels) == 0.0
    spoilt = apart.copy()
    spoilt[0] = np.nan  # row 1 has lost its neighbour as well
    assert task.score(spoilt, labels) == 0.5
    assert task.score(np.zeros_like(apart), labels) == 0.0


def test_recall_is_that_of_every_pair_compared(tmp_path: Path):
    task = load(faces(tmp_path / "faces", people(8)))
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(1100, 4)), rng.integers(0, 3, 1100)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    likeness = units @ units.T - 9 * np.eye(len(rows))
    expected = (labels[likeness.argmax(axis=1)] == labels).mean()
    assert task.score(rows, labels) == pytest.approx(expected)


def test_too_few_classes_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="too few classes"):
        load(faces(tmp_path / "faces", people(5)))


def test_a_class_of_one_image_is_refused(tmp_path: Path):
    root = faces(tmp_path / "faces", people(8))
    faces(root, ["zoe"], each=1)
    with pytest.raises(DataError, match=r"'zoe' .* has one image"):
        load(root)


def test_a_split_that_shows_a_class_on_both_sides_is_refused(tmp_path: Path):
    faces(tmp_path / "faces/train", people(8))
    faces(tmp_path / "faces/test", people(8)[-3:])
    with pytest.raises(DataError, match=r"'person 05' .* in its training and its test part"):
        load(tmp_path / "faces")
