from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.distillation.knowledge import Batch, Shapes, total_loss
from edgekd.distillation.losses import knowledge_from, response
from edgekd.distillation.mixture import Member, Mixture
from edgekd.distillation.several import Confident, confidence_shares
from edgekd.distillation.teachers import from_module
from edgekd.errors import ConfigError
from edgekd.stages.distill import distill
from edgekd.stages.label import label
from edgekd.values.job import LossSection
from tests.distillation.small import SPEC, digits, recipe

SHAPE = torch.Size([5])
LABELS = torch.tensor([0, 3, 4])


def logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(count: int, temperature: float = 1.0) -> Confident:
    return Confident(
        Shapes(name="camkd", student=(SHAPE,) * count, teacher=(SHAPE,) * count, samples=3, classes=5),
        temperature=temperature,
    )


def test_shares_are_those_of_the_paper_and_sum_to_one():
    given = tuple(logits(seed) for seed in (1, 2, 3))
    shares = confidence_shares(given, LABELS).numpy()
    for row, label_ in enumerate(LABELS.tolist()):
        losses = [-math.log(one[row].softmax(0)[label_]) for one in given]
        total = sum(math.exp(loss) for loss in losses)
        wanted = [(1 - math.exp(loss) / total) / 2 for loss in losses]
        np.testing.assert_allclose(shares[:, row], wanted, rtol=1e-12)
    np.testing.assert_allclose(shares.sum(0), 1.0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_is_that_of_the_published_sum_of_losses(temperature: float):
    student, given = logits(0).requires_grad_(), tuple(logits(seed) for seed in (1, 2, 3))
    batch = Batch(labels=LABELS)
    (learnt,), (mixed,) = made(3, temperature)((student,) * 3, given, batch)
    own = torch.autograd.grad(response.kd(learnt, mixed, batch, temperature=temperature), student)[0]
    shares = confidence_shares(given, LABELS)
    apart = sum(
        -share[:, None] * (one / temperature).softmax(1) * (student / temperature).log_softmax(1)
        for share, one in zip(shares, given)
    )
    published = torch.autograd.grad(temperature**2 * apart.sum(1).mean(), student)[0]
    torch.testing.assert_close(own, published)


def test_a_teacher_that_is_wrong_and_certain_is_not_heard():
    right, wrong = torch.zeros(3, 5), torch.zeros(3, 5)
    right[torch.arange(3), LABELS] = 20.0
    wrong[torch.arange(3), (LABELS + 1) % 5] = 500.0
    batch = Batch(labels=LABELS)
    _, (mixed,) = made(2)((right, right), (right, wrong), batch)
    assert mixed.isfinite().any(dim=1).all()
    assert mixed.softmax(1)[torch.arange(3), LABELS].min() > 0.999
    loss = response.kd(torch.zeros(3, 5), mixed, batch)
    assert torch.isfinite(loss)


def test_teachers_that_say_the_same_are_one():
    one, student, batch = logits(1), logits(0), Batch(labels=LABELS)
    _, (mixed,) = made(2, 3.0)((student, student), (one, one), batch)
    expected = response.kd(student, one, batch, temperature=3.0)
    torch.testing.assert_close(response.kd(student, mixed, batch, temperature=3.0), expected)


def test_mixed_images_are_weighed_by_both_labels():
    shares = nn.functional.one_hot(LABELS, 5).double()
    given = tuple(logits(seed) for seed in (1, 2))
    torch.testing.assert_close(confidence_shares(given, shares), confidence_shares(given, LABELS))


def test_one_teacher_is_refused_and_several_are_compared_with_one_student():
    with pytest.raises(ConfigError, match="weighs several teachers, and taps one") as caught:
        made(1)
    assert "members.1" in caught.value.mend
    given = recipe(losses={"camkd": LossSection(teacher=("members.0", "members.1"))}, temperature=2.0)
    (one,) = knowledge_from(given, classes=5)
    assert one.student == ("logits", "logits")
    adapters = nn.ModuleDict({"camkd": made(2, 2.0)})
    same = {"members.0": logits(1), "members.1": logits(1)}
    batch = Batch(labels=LABELS)
    found = total_loss([one], adapters, {"logits": logits(0)}, same, batch)
    torch.testing.assert_close(found, response.kd(logits(0), logits(1), batch, temperature=2.0))
    assert isinstance(one.adapter, partial)
    with pytest.raises(ConfigError, match="needs to know what to tap in the teacher"):
        knowledge_from(recipe(losses={"camkd": 1.0}), classes=5)


@pytest.mark.usefixtures("plain")
def test_a_student_of_two_teachers_is_taught_by_the_one_that_knows(tmp_path: Path):
    task = dataclasses.replace(digits(), crop=0)
    pixels = torch.from_numpy(task.inputs(task.train, 8)[:, 0]).flatten(1)
    means = torch.stack([pixels[task.train.labels == at].mean(0) for at in range(10)])
    knows, misled = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
    with torch.no_grad():
        for module, centres in (
            (knows, means),
            (misled, means.roll(1, 0)),
        ):  # nearest means, and each one off
            module[1].weight.copy_(centres)
            module[1].bias.copy_(-0.5 * centres.square().sum(1))
    members = [Member(module=module, weight=weight) for module, weight in ((knows, 1.0), (misled, 1.2))]
    teacher = from_module(Mixture(members, probabilities=True), task)
    stages = tuple(dataclasses.replace(SPEC.stages[0], width=width) for width in (16, 32))
    spec = dataclasses.replace(SPEC, stem=16, stages=stages)
    scores = {}
    taps = LossSection(weight=1.0, teacher=("members.0", "members.1"))
    for name, losses in (("kd", {"kd": 1.0}), ("camkd", {"camkd": taps})):
        given = recipe(losses=losses, learning_rate=0.2, batch=16, ema=0.9)
        known = (label(tmp_path / name, teacher, task, 0, given, 0),)
        scores[name] = distill(tmp_path / f"{name} student", spec, task, known, given, 4, 0).accuracy
    assert scores["camkd"] > scores["kd"] + 0.2
