from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgekd.distillation import loop, teachers
from edgekd.distillation.arithmetic import Arithmetic
from edgekd.distillation.teachers import from_module
from edgekd.errors import IntegrityError, UsageError
from edgekd.stages.distill import distill, lesson_from
from edgekd.stages.label import label
from edgekd.store import Store
from edgekd.students import build
from edgekd.values.checkpoint import Labels
from tests.distillation.small import SPEC, digits, recipe


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loop, teachers):
        monkeypatch.setattr(module, "choose_arithmetic", lambda *_, **__: Arithmetic())


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labels, ...]:
    torch.manual_seed(0)
    teacher = from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits())
    folder = tmp_path_factory.mktemp("labels")
    return tuple(
        label(folder / str(view), teacher, digits(), view, recipe(losses={"ce": 1, "pooled": 1}), 0)
        for view in range(2)
    )


def test_a_student_matches_its_teacher_without_seeing_a_true_label(tmp_path: Path):
    task = dataclasses.replace(digits(), crop=0)
    wrong = dataclasses.replace(task.train, labels=np.zeros_like(task.train.labels))
    blind = dataclasses.replace(task, train=wrong)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    pixels = torch.from_numpy(task.inputs(task.train, 8)[:, 0])
    means = torch.stack([pixels[task.train.labels == at].mean(dim=0).flatten() for at in range(10)])
    with torch.no_grad():  # a nearest-mean classifier
        module[1].weight.copy_(means)
        module[1].bias.copy_(-0.5 * means.square().sum(dim=1))
    teacher = from_module(module, blind)
    known = (label(tmp_path / "labels", teacher, blind, 0, recipe(losses={"kd": 1.0}), 0),)
    stages = tuple(dataclasses.replace(SPEC.stages[0], width=width) for width in (16, 32))
    spec = dataclasses.replace(SPEC, stem=16, stages=stages)
    given = recipe(losses={"kd": 1.0}, learning_rate=0.2, batch=16, ema=0.9)
    kept = distill(tmp_path / "student", spec, blind, known, given, 5, 0)
    assert kept.accuracy > 0.5


def test_epochs_take_the_views_in_turn(
    labels: tuple[Labels, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def watched(one: Labels, task: object) -> loop.Lesson:
        seen.append(one.view)
        return lesson_from(one, task)

    monkeypatch.setattr("edgekd.stages.distill.lesson_from", watched)
    distill(tmp_path, SPEC, digits(), labels, recipe(), 3, 0)
    assert seen[1:] == [0, 1, 0]  # the first question settles the shapes


def test_adapters_are_not_in_the_student_s_weights(labels: tuple[Labels, ...], tmp_path: Path):
    kept = distill(tmp_path, SPEC, digits(), labels, recipe(losses={"ce": 1.0, "pooled": 1.0}), 1, 0)
    student = build(SPEC, channels=1, classes=10)
    assert load_file(kept.weights.path).keys() == student.state_dict().keys()
    student.load_state_dict(load_file(kept.weights.path))


def test_a_student_of_another_resolution_sees_the_same_view_scaled(
    labels: tuple[Labels, ...], tmp_path: Path
):
    spec = dataclasses.replace(SPEC, resolution=6)
    kept = distill(tmp_path, spec, digits(), labels, recipe(), 1, 0)
    assert 0 <= kept.accuracy <= 1


def test_the_store_keeps_a_distillation_and_another_seed_is_another(
    labels: tuple[Labels, ...], tmp_path: Path
):
    store = Store(tmp_path)
    first = store.run(distill, SPEC, digits(), labels, recipe(), 1, 0)
    assert store.run(distill, SPEC, digits(), labels, recipe(), 1, 0) == first
    assert store.run(distill, SPEC, digits(), labels, recipe(), 1, 1).weights.sha256 != first.weights.sha256


def test_outputs_of_other_data_or_that_were_changed_are_refused(labels: tuple[Labels, ...], tmp_path: Path):
    fewer = dataclasses.replace(digits(), train=digits().train.part(0, 100))
    with pytest.raises(UsageError, match="labelled 430 samples, the task trains on 100"):
        distill(tmp_path / "a", SPEC, fewer, labels, recipe(), 1, 0)
    spoilt = dataclasses.replace(labels[0].outputs["logits"], sha256="0" * 64)
    changed = dataclasses.replace(labels[0], outputs={"logits": spoilt})
    with pytest.raises(IntegrityError):
        distill(tmp_path / "b", SPEC, digits(), (changed,), recipe(), 1, 0)
