from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgekd.distillation import loop
from edgekd.distillation.arithmetic import Arithmetic
from edgekd.distillation.evaluation import accuracy
from edgekd.distillation.teachers import fingerprint_of, from_module, with_weights
from edgekd.stages.teach import teach
from edgekd.values.job import TeacherSection
from tests.distillation.small import digits, net, recipe

SECTION = TeacherSection(model="", epochs=4, learning_rate=0.1)


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "choose_arithmetic", lambda *_, **__: Arithmetic())


def test_a_teacher_learns_and_its_checkpoint_says_how_well(tmp_path: Path):
    teacher = from_module(net(width=16), digits())
    before = fingerprint_of(teacher.module)
    checkpoint = teach(tmp_path, teacher, digits(), SECTION, recipe(), 0)
    better = with_weights(teacher, checkpoint)
    assert checkpoint.accuracy > 0.5
    assert accuracy(better.module, digits(), digits().validation, 8) == checkpoint.accuracy
    assert fingerprint_of(teacher.module) == before
    assert not any(weight.requires_grad for weight in better.module.parameters())


def test_frozen_parts_and_the_losses_of_the_recipe_do_not_matter(tmp_path: Path):
    teacher = from_module(net(), digits())
    first = teach(tmp_path / "a", teacher, digits(), SECTION, recipe(), 0)
    second = teach(
        tmp_path / "b", teacher, digits(), SECTION, recipe(losses={"kd": 1.0}, learning_rate=9.0), 0
    )
    assert first.weights.sha256 == second.weights.sha256
    other = teach(tmp_path / "c", teacher, digits(), SECTION, recipe(), 1)
    assert other.weights.sha256 != first.weights.sha256


def test_the_global_random_numbers_are_left_alone(tmp_path: Path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    teach(tmp_path, from_module(net(), digits()), digits(), TeacherSection(model="", epochs=1), recipe(), 0)
    assert torch.equal(torch.rand(1), expected)
