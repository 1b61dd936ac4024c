"""Every task keeps the promises that the pipeline relies on; each kind is loaded here once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekd import tasks
from edgekd.errors import ConfigError
from edgekd.tasks import LOADERS, ImageClassification, Split, Task
from edgekd.tasks.detection import Detection, from_boxes
from edgekd.tasks.generation import Generation, from_text
from edgekd.tasks.keywords import KeywordSpotting, from_recordings
from edgekd.tasks.masks import Masked
from edgekd.tasks.ranking import ListRanking, from_lists
from edgekd.tasks.regression import TableRegression, from_table
from edgekd.tasks.scenes import digit_scenes
from edgekd.tasks.segmentation import Segmentation, from_masks
from edgekd.values.job import TASKS, TaskSection
from tests.contracts.task import ClassContract, TaskContract
from tests.tasks import perfect_maps, sine_words, tables


class TestClassification(ClassContract):
    def task(self) -> ImageClassification:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
        return tasks.from_arrays(images, np.arange(60) % 3, section=TaskSection(data="drawn", crop=2))

    again = task


class TestKeywords(ClassContract):
    def task(self) -> KeywordSpotting:
        section = TaskSection(data="sine words", kind="keywords", resolution=16, crop=40)
        return from_recordings(sine_words.recordings(), section=section)

    again = task


class TestGeneration(TaskContract):
    def task(self) -> Generation:
        section = TaskSection(data="squares", kind="generation", resolution=6)
        return from_text(" ".join(str(number**2) for number in range(100)), section=section)

    again = task

    def right(self, task: Task, split: Split) -> np.ndarray:
        return np.eye(task.outputs, dtype=np.float32)[split.labels]


class TestRegression(TaskContract):
    def task(self) -> TableRegression:
        return from_table(tables.table(), section=TaskSection(data="drawn", kind="regression"))

    again = task

    def right(self, task: Task, split: Split) -> np.ndarray:
        return split.labels


class TestRanking(TaskContract):
    def task(self) -> ListRanking:
        return from_lists(tables.lists(), section=TaskSection(data="drawn", kind="ranking"))

    again = task

    def right(self, task: Task, split: Split) -> np.ndarray:
        return split.labels


class TestRecognition(TaskContract):
    def task(self) -> Task:
        section = TaskSection(data="digit-pairs", kind="recognition", flip=False, crop=1, embedding=12)
        return tasks.load(section, beside=Path(), cache=Path())

    again = task

    def right(self, task: Task, split: Split) -> np.ndarray:
        directions = np.random.default_rng(0).normal(size=(100, task.outputs))
        return directions[split.labels]

    def test_no_class_is_in_two_parts(self):
        task = self.task()
        train, validation, test = (
            set(getattr(task, name).labels) for name in ("train", "validation", "test")
        )
        assert train == set(range(len(task.classes)))
        assert not train & validation
        assert not test & (train | validation)
        assert min(map(len, (train, validation, test))) >= 2


class TestDetection(TaskContract):
    def task(self) -> Detection:
        scenes = digit_scenes(most=4, sides=(14, 20), counts=(40, 8, 8))
        section = TaskSection(data="scenes", kind="detection", crop=4, flip=False)
        return from_boxes(section, scenes.images, scenes)

    again = task

    def right(self, task: Task, split: Split) -> np.ndarray:
        return perfect_maps.of_boxes(split.labels, len(task.classes), task.resolution // 4)


class TestSegmentation(TaskContract):
    def task(self) -> Segmentation:
        rng = np.random.default_rng(0)
        stripes = rng.integers(0, 3, (30, 1, 8), dtype=np.uint8).repeat(4, axis=2).repeat(32, axis=1)
        images = rng.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
        found = Masked(images=images, masks=stripes, classes=("a", "b", "c"), roles=np.arange(30) % 3)
        return from_masks(TaskSection(data="stripes", kind="segmentation", crop=4), found)

    again = task

    def right(self, task: Task, split: Split) -> np.ndarray:
        return perfect_maps.of_masks(split.labels, len(task.classes))


def test_every_kind_that_a_job_can_name_has_a_loader():
    assert set(LOADERS) == set(TASKS)


def test_a_kind_that_does_not_exist_is_refused_with_a_guess():
    with pytest.raises(ConfigError, match="'regresion'") as caught:
        TaskSection(data="x", kind="regresion")
    assert "regression" in caught.value.mend
