"""Training and labelling ask a task, and never what it is: rows of numbers, letters and sound go the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekd import students
from edgekd.distillation.arithmetic import Arithmetic, choose_arithmetic
from edgekd.distillation.evaluation import accuracy
from edgekd.distillation.fitting import knowledge_for, try_losses
from edgekd.distillation.losses import LOSSES
from edgekd.distillation.teachers import Teacher, from_module
from edgekd.distillation.views import batch_view, view_of
from edgekd.errors import ConfigError, TeacherError
from edgekd.stages.distill import distill
from edgekd.stages.label import label
from edgekd.stages.teach import teach
from edgekd.tasks import Task
from edgekd.tasks.generation import Generation, from_text
from edgekd.tasks.keywords import KeywordSpotting, from_recordings
from edgekd.tasks.regression import TableRegression, from_table
from edgekd.values.job import DistillationSection, LossSection, TaskSection, TeacherSection
from tests.distillation.small import digits
from tests.tasks import sine_words, tables

RECIPE = DistillationSection(batch=16, views=1, optimizer="adamw", learning_rate=0.01, ema=0.0)


def table() -> TableRegression:
    return from_table(tables.table(), section=TaskSection(data="drawn", kind="regression"))


def text() -> Generation:
    section = TaskSection(data="text", kind="generation", resolution=6)
    return from_text("the quick brown fox jumps over the lazy dog\n" * 12, section=section)


def words() -> KeywordSpotting:
    section = TaskSection(data="sine words", kind="keywords", resolution=16, crop=40)
    return from_recordings(sine_words.recordings(), section=section)


class Reader(nn.Module):
    """A teacher of letters."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, 12)
        self.recurrent = nn.GRU(12, 24, batch_first=True)
        self.head = nn.Linear(24, letters)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(self.embedding(letters))[0])


def teacher_of(task: Task) -> Teacher:
    torch.manual_seed(0)
    if isinstance(task, Generation):
        return from_module(Reader(task.outputs), task)
    if isinstance(task, TableRegression):
        return from_module(
            nn.Sequential(nn.Linear(task.channels, 32), nn.ReLU(), nn.Linear(32, task.outputs)), task
        )
    return from_module(
        nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, task.outputs)
        ),
        task,
    )


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("make", [table, text, words], ids=["rows", "letters", "sound"])
def test_a_teacher_learns_and_labels_and_a_student_learns_from_it(make: Callable[[], Task], tmp_path: Path):
    task = make()
    untrained = teacher_of(task)
    section = TeacherSection(model="live", epochs=4, learning_rate=0.02)
    taught = teach(tmp_path / "teacher", untrained, task, section, RECIPE, 0)
    before = accuracy(untrained.module, task, task.validation, task.resolution)
    assert taught.accuracy > before
    labels = label(tmp_path, untrained, task, 0, RECIPE, 0)
    kept = np.load(labels.outputs["logits"].path, allow_pickle=False)
    assert kept.shape == (len(task.train), *task.answer_shape(task.resolution))
    space = students.space_for(
        resolution=task.resolution, channels=task.channels, classes=task.outputs, families=task.families
    )
    try_losses(RECIPE, untrained, task, space)
    spec = students.smallest(space, space.families[0])
    learnt = distill(tmp_path / "student", spec, task, (labels,), RECIPE, 3, 0)
    assert learnt.losses[-1] < learnt.losses[0]


def test_a_recipe_without_losses_means_the_tasks_own():
    for task in (table(), text(), words(), digits()):
        assert [one.name for one in knowledge_for(DistillationSection(), task)] == list(task.losses)
    (only,) = knowledge_for(DistillationSection(losses={"mse": 2.0}), digits())
    assert (only.name, only.weight) == ("mse", 2.0)


def test_keywords_are_served_by_what_serves_classes_of_images():
    serving = [
        {name for name, one in LOSSES.items() if kind in one.tasks} for kind in ("classification", "keywords")
    ]
    assert serving[0] == serving[1]
    assert {"ce", "kd", "dist"} <= serving[0]


def test_confidence_is_a_probability_and_refused_where_there_is_none():
    (name,) = table().losses
    given = DistillationSection(losses={name: LossSection(confidence=0.5)})
    with pytest.raises(ConfigError, match="no confidence in regression"):
        knowledge_for(given, table())


def test_a_teacher_of_another_shape_is_refused_in_the_words_of_the_task():
    task = table()
    with pytest.raises(TeacherError, match="do not fit the task") as caught:
        from_module(nn.Linear(task.channels, 5), task)
    assert "regression asks for a tensor (2, 2)" in caught.value.cause
    with pytest.raises(TeacherError, match=r"cannot take inputs of shape \(4,\)"):
        from_module(nn.Conv2d(1, 2, 3), task)


@pytest.mark.parametrize("make", [table, text, words, digits])
def test_the_arithmetic_of_a_teacher_is_tried_on_samples_of_the_task(make: Callable[[], Task]):
    task = make()
    teacher = teacher_of(task)
    assert teacher.sample.shape[1:] == task.prepare(task.train.samples[:1], task.resolution).shape[1:]
    assert teacher.arithmetic.threads >= 1
    if teacher.sample.ndim != 4:
        assert not teacher.arithmetic.channels_last


def test_letters_stay_letters_in_every_arithmetic():
    letters = torch.from_numpy(text().train.samples[:4])
    placed = Arithmetic(bf16=True, channels_last=True).placed(letters)
    assert placed.dtype == torch.int64
    chosen = choose_arithmetic(Reader(97), letters, training=True)
    assert not chosen.channels_last


def test_sound_comes_later_or_earlier_and_leaves_silence():
    task = words()
    view = view_of(task, 0, seed=0)
    assert 0 < view.right.max() <= 40
    assert -40 <= view.right.min() < 0
    assert not view.mirrored.any()
    rows = np.arange(len(task.train))
    inputs, labels = batch_view(task, rows, view, 16)
    moved = np.zeros_like(task.train.samples)
    for at, right in enumerate(view.right):
        sound = task.train.samples[at]
        if right >= 0:
            moved[at, right:] = sound[: len(sound) - right]
        else:
            moved[at, :right] = sound[-right:]
    np.testing.assert_array_equal(inputs.numpy(), task.prepare(moved, 16))
    np.testing.assert_array_equal(labels.numpy(), task.train.labels)


def test_sound_that_may_not_move_and_all_that_is_neither_sound_nor_image_stay_as_they_are():
    for task in (dataclasses.replace(words(), crop=0), table(), text()):
        view = view_of(task, 3, seed=1)
        inputs, labels = batch_view(task, np.arange(5), view, task.resolution)
        np.testing.assert_array_equal(inputs.numpy(), task.prepare(task.train.samples[:5], task.resolution))
        np.testing.assert_array_equal(labels.numpy(), task.train.labels[:5])


@pytest.mark.parametrize("make", [table, text])
def test_what_has_no_classes_is_not_mixed(make: Callable[[], Task]):
    with pytest.raises(ConfigError, match=f"samples of {make().kind} cannot be mixed") as caught:
        view_of(make(), 0, seed=0, mixup=0.2)
    assert "mixup" in caught.value.mend
