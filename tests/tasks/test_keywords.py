from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgekd import tasks
from edgekd.errors import ConfigError, DataError
from edgekd.tasks.keywords import KeywordSpotting
from edgekd.values.job import TaskSection
from tests.tasks import sine_words


def load(path: Path, **settings: object) -> KeywordSpotting:
    section = TaskSection(data=str(path), kind="keywords", **{"resolution": 16, "crop": 40, **settings})
    task = tasks.load(section, beside=Path(), cache=Path())
    assert isinstance(task, KeywordSpotting)
    return task


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sine_words.npz(tmp_path_factory.mktemp("sounds") / "words.npz")


def test_training_pictures_have_mean_0_and_spread_1(words: Path):
    task = load(words)
    made = task.inputs(task.train, 16)
    assert made.shape[1:] == (1, 1, 16, 16)
    assert abs(made.mean()) < 1e-3
    assert made.std() == pytest.approx(1.0, abs=1e-3)


def test_a_smaller_student_hears_the_whole_sound_too(words: Path):
    task = load(words)
    for side in (8, 12, 16):
        recipe = task.preprocess(side)
        heard = (recipe.frames - 1) * recipe.hop + recipe.window
        assert task.train.samples.shape[1] - recipe.frames < heard <= task.train.samples.shape[1]
        assert task.inputs(task.test, side, 2).shape == (2, 1, 1, side, side)


def test_tones_are_told_apart_by_what_the_pictures_show(words: Path):
    task = load(words)
    train, test = (task.inputs(part, 16).reshape(len(part), -1) for part in (task.train, task.test))
    means = np.stack([train[task.train.labels == number].mean(axis=0) for number in range(3)])
    distances = np.square(test[:, None] - means).sum(axis=2)
    assert task.score(-distances, task.test.labels) > 0.9


def test_the_given_mean_and_std_are_kept(words: Path):
    recipe = load(words, mean=(-3.0,), std=(2.0,)).preprocess(16)
    assert (recipe.mean, recipe.std) == (-3.0, 2.0)
    with pytest.raises(ConfigError, match="one number each"):
        load(words, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_more_frames_than_there_is_sound_are_refused(words: Path):
    with pytest.raises(DataError, match="cannot be divided into 3000 frames"):
        load(words, resolution=3000)


def test_two_words_are_not_learnt_by_dist(words: Path):
    task = load(words)
    assert "dist" in task.losses
    assert "dist" not in dataclasses.replace(task, classes=("no", "yes")).losses


def test_its_fingerprint_depends_on_what_makes_its_inputs(words: Path):
    task = load(words)
    for change in ({"mean": 0.5}, {"sample_rate": 8000}, {"crop": 0}, {"resolution": 8}):
        assert dataclasses.replace(task, **change).fingerprint != task.fingerprint
