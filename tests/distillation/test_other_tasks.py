"""Students of tables, lists and embeddings learn by the one loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgekd.distillation.adapters import Experts, Proxies
from edgekd.distillation.evaluation import outputs_of
from edgekd.distillation.fitting import knowledge_for
from edgekd.distillation.knowledge import LOGITS, POOLED, Batch, Shapes
from edgekd.distillation.loop import Course, Lesson, train
from edgekd.distillation.losses import knowledge_from
from edgekd.distillation.views import view_of
from edgekd.errors import ConfigError
from edgekd.students import build
from edgekd.tasks import Task, from_arrays
from edgekd.tasks.ranking import from_lists
from edgekd.tasks.recognition import ImageRecognition
from edgekd.tasks.regression import from_table
from edgekd.tasks.task import Split
from edgekd.values.job import DistillationSection, TaskSection
from edgekd.values.student import StageSpec, StudentSpec
from tests.tasks import tables


def recipe(**given: object) -> DistillationSection:
    return DistillationSection(
        optimizer="adamw", learning_rate=0.02, weight_decay=0.0, batch=16, ema=0.0, **given
    )


def taught(
    folder: Path, module: nn.Module, task: Task, given: DistillationSection, **targets: np.ndarray
) -> float:
    """Train a few epochs; return the score on the validation part."""
    lesson = Lesson(view=view_of(task, 0, seed=0), targets=targets)
    course = Course(
        task=task, knowledge=knowledge_for(given, task), lesson=lambda _: lesson, recipe=given,
        resolution=task.resolution, epochs=15, seed=0,
    )  # fmt: skip
    return train(folder, module, course).accuracy


def perceptron(task: Task) -> nn.Module:
    stage = StageSpec(width=16, depth=1, kernel=1, expansion=1.0)
    spec = StudentSpec(family="mlp", resolution=task.resolution, stem=16, stages=(stage,))
    return build(spec, channels=task.channels, classes=task.outputs)


def test_a_table_is_learnt_from_its_labels_and_from_a_teacher(tmp_path: Path):
    task = from_table(tables.table(120), section=TaskSection(data="drawn", kind="regression", validation=0.2))
    for name, given, targets in (
        ("labels", recipe(losses={"squares": 1.0}), {}),
        ("teacher", recipe(), {LOGITS: task.train.labels.astype(np.float16)}),
    ):
        (tmp_path / name).mkdir()
        assert taught(tmp_path / name, perceptron(task), task, given, **targets) > 0.9


def test_lists_are_learnt_from_their_labels_and_from_a_teacher(tmp_path: Path):
    task = from_lists(tables.lists(120), section=TaskSection(data="drawn", kind="ranking", validation=0.2))
    before = task.score(
        outputs_of(perceptron(task), task, task.validation, task.resolution), task.validation.labels
    )
    for name, given, targets in (
        ("labels", recipe(losses={"relevance": 1.0}), {}),
        ("teacher", recipe(), {LOGITS: task.train.samples.sum(axis=2).astype(np.float16)}),
    ):
        (tmp_path / name).mkdir()
        found = taught(tmp_path / name, perceptron(task), task, given, **targets)
        assert found > 0.9 > before


def recognition(count: int = 60) -> ImageRecognition:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
    task = from_arrays(images, np.arange(count) % 3, section=TaskSection(data="drawn", flip=False, crop=0))
    shared = {
        name: getattr(task, name) for name in ("name", "classes", "mean", "std", "resolution", "flip", "crop")
    }
    unseen = Split(samples=task.validation.samples, labels=task.validation.labels + 3)
    return ImageRecognition(train=task.train, validation=unseen, test=unseen, outputs=6, **shared)


def test_an_embedding_is_learnt_and_what_stands_for_the_classes_is_not_kept(tmp_path: Path):
    task = recognition()
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    before = task.score(outputs_of(module, task, task.train, task.resolution), task.train.labels)
    taught(tmp_path, module, task, recipe(losses={"cosface": 1.0}))
    assert set(load_file(tmp_path / "weights.safetensors")) == {"1.weight", "1.bias"}
    found = outputs_of(module, task, task.train, task.resolution)
    assert task.score(found, task.train.labels) > 0.85 > before + 0.2


def test_in_recognition_the_end_is_compared_and_not_what_comes_before_it():
    given = DistillationSection(losses={"rkd": 1.0, "pkt": 1.0, "embedding": 1.0})
    for one in knowledge_from(given, classes=6, task="recognition"):
        assert (one.student, one.teacher) == ((LOGITS,), (LOGITS,))
    (rkd,) = knowledge_from(DistillationSection(losses={"rkd": 1.0}), classes=6)
    assert rkd.student == (POOLED,)


@pytest.mark.parametrize(
    ("name", "task"),
    [("kd", "recognition"), ("cosface", "classification"), ("listnet", "regression"), ("squares", "ranking")],
)
def test_a_loss_of_another_task_is_refused_with_those_that_serve(name: str, task: str):
    with pytest.raises(ConfigError, match=f"`{name}` does not serve {task}") as caught:
        knowledge_from(DistillationSection(losses={name: 1.0}), classes=6, task=task)
    assert {"recognition": "cosface", "classification": "kd", "regression": "ail", "ranking": "rrd"}[
        task
    ] in caught.value.mend


def shapes(student: tuple[int, ...], teacher: tuple[int, ...]) -> Shapes:
    return Shapes(
        name="it", student=(torch.Size(student),), teacher=(torch.Size(teacher),), samples=9, classes=4
    )


def test_proxies_give_cosines_with_a_direction_a_class():
    proxies = Proxies(shapes((5,), ()))
    embeddings = torch.randn(7, 5)
    ((found,), _) = proxies((embeddings,), (torch.zeros(7),), Batch(labels=torch.zeros(7)))
    expected = torch.cosine_similarity(embeddings[:, None], proxies.directions[0][None], dim=2)
    torch.testing.assert_close(found, expected)


def test_experts_map_the_rows_of_lists_as_they_map_vectors():
    torch.manual_seed(0)
    experts = Experts(shapes((3, 5), (3, 6)), experts=4)
    batch = Batch(
        labels=torch.zeros(2), progress=1.0
    )  # cold: the choice is hard, and follows the gate's noise
    ((found,), _) = experts((torch.randn(2, 3, 5),), (torch.randn(2, 3, 6),), batch)
    assert found.shape == (2, 3, 6)
