"""What spoils losses: few rows, constant logits, dead features, half precision; and what no loss may do."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from edgekd.distillation.knowledge import Batch, Knowledge, total_loss
from edgekd.distillation.losses import LOSSES, knowledge_from, relation, response
from edgekd.errors import UsageError
from edgekd.values.job import DistillationSection
from tests.distillation.examples import LABELS, ROWS, Example, draw, example, gradient

ROUGH = {"minillm"}  # its gradient is that of another value, on purpose
ON_LOGITS = ("kd", "mse", "dkd", "dist", "lskd", "nkd", "wttm", "bkd")
ON_VECTORS = ("pooled", "directions", "srd", "rkd", "sp", "pkt", "irg", "infonce", "cc")
ON_MAPS = ("fitnet", "at", "reviewkd", "mgd", "ickd", "cwd")


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_one_number_with_a_gradient_to_the_student(name: str):
    given = example(name)
    assert given.value().shape == ()
    found = gradient(given)
    assert torch.isfinite(found).all()
    assert found.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ROUGH])
def test_the_gradient_of_a_loss_is_that_of_its_value(name: str):
    given = example(name)
    student = given.student.clone().requires_grad_()
    loss = partial(_of_student, given)
    assert torch.autograd.gradcheck(loss, student, fast_mode=True)


def _of_student(given: Example, student: Tensor) -> Tensor:
    return given.loss(student, given.teacher, given.batch)


def in_a_total(loss: object, student: Tensor, teacher: Tensor, batch: Batch, **settings: object) -> Tensor:
    """Compute a loss as a training does."""
    one = Knowledge(name="it", loss=loss, **settings)
    return total_loss((one,), nn.ModuleDict(), {"logits": student}, {"logits": teacher}, batch)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in LOSSES
        if name not in {"ce", "masks", "sequence", "aht", "crd", "cosface", "relevance"}
    ],
)
def test_no_gradient_reaches_the_teacher(name: str):
    given = example(name)
    student, teacher = given.student.clone().requires_grad_(), given.teacher.clone().requires_grad_()
    in_a_total(given.loss, student, teacher, given.batch).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("name", [*ON_LOGITS, *ON_VECTORS, *ON_MAPS])
@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
def test_constant_logits_and_dead_features_give_finite_losses_and_gradients(name: str, dead: str):
    given = example(name)
    zero = torch.zeros_like(given.student).float()
    student = zero if dead != "teacher" else given.student.float()
    teacher = zero if dead != "student" else given.teacher.float()
    for shift in (0.0, 3.0):
        case = dataclasses.replace(given, student=student + shift, teacher=teacher + shift)
        assert torch.isfinite(case.value())
        assert torch.isfinite(gradient(case)).all()


@pytest.mark.parametrize("name", [*ON_LOGITS, *ON_VECTORS])
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_tiny_and_huge_inputs_give_finite_losses_and_gradients(name: str, scale: float):
    given = example(name)
    case = dataclasses.replace(
        given, student=given.student.float() * scale, teacher=given.teacher.float() * scale
    )
    assert torch.isfinite(case.value())
    assert torch.isfinite(gradient(case)).all()


@pytest.mark.parametrize(
    "name",
    [name for name in LOSSES if "classification" in LOSSES[name].tasks and name not in {"ce", "crd", "vid"}],
)
def test_a_batch_of_one_sample_gives_a_finite_loss_or_none(name: str):
    given, least = example(name), LOSSES[name].least_rows
    student, teacher = given.student[:1].float().requires_grad_(), given.teacher[:1].float()
    batch = Batch(labels=given.batch.labels[:1])
    total = in_a_total(given.loss, student, teacher, batch, least_rows=least)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()
    assert least == 1 or (float(total.detach()) == 0 and not student.grad.any())


def test_two_classes_leave_dist_and_standardised_logits_without_a_gradient_which_is_why_they_are_refused():
    student, teacher = draw(1, ROWS, 2), draw(2, ROWS, 2)
    batch = Batch(labels=LABELS.labels % 2)
    lskd = Example(loss=response.lskd, student=student, teacher=teacher, batch=batch)
    rows = Example(loss=partial(response.dist, gamma=0.0), student=student, teacher=teacher, batch=batch)
    others = Example(loss=partial(response.dkd, alpha=0.0), student=student, teacher=teacher, batch=batch)
    for one in (lskd, rows, others):
        assert gradient(one).abs().max() < 1e-6


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*ON_LOGITS, *ON_VECTORS, *ON_MAPS])
def test_half_precision_is_raised_to_fp32_before_any_loss_and_stays_there_under_autocast(
    name: str, half: torch.dtype
):
    given = example(name)
    student, teacher = given.student.to(half), given.teacher.to(half)
    with torch.autocast("cpu", torch.bfloat16):
        found = in_a_total(given.loss, student, teacher, given.batch)
    assert found.dtype == torch.float32
    exact = given.loss(student.float(), teacher.float(), given.batch)
    assert torch.equal(found, exact)


def test_float64_stays_float64():
    given = example("kd")
    assert in_a_total(given.loss, given.student, given.teacher, given.batch).dtype == torch.float64


def test_distances_far_from_the_origin_keep_their_digits():
    near = draw(1, ROWS, 4).float()
    far = near + 1000
    assert float(relation.rkd(far, near, LABELS)) < 1e-4


def test_cross_entropy_takes_shares_of_mixed_images_and_the_others_their_larger_part():
    student, teacher = draw(1, ROWS, 5), draw(2, ROWS, 5)
    hard, other = torch.eye(5).double()[LABELS.labels], torch.eye(5).double()[(LABELS.labels + 1) % 5]
    mixed = Batch(labels=0.7 * hard + 0.3 * other)
    expected = -(mixed.labels * torch.log_softmax(student, 1)).sum(dim=1).mean()
    torch.testing.assert_close(response.cross_entropy(student, mixed.labels, mixed), expected)
    for loss in (response.dkd, response.nkd, response.ofa):
        assert torch.equal(loss(student, teacher, mixed), loss(student, teacher, LABELS))


def test_confidence_leaves_out_samples_whose_label_the_teacher_doubts():
    student, teacher = draw(1, ROWS, 5, scale=2), draw(2, ROWS, 5, scale=2)
    sure = torch.softmax(teacher, 1).gather(1, LABELS.labels[:, None])[:, 0] >= 0.2
    assert 0 < int(sure.sum()) < ROWS
    found = in_a_total(response.kd, student, teacher, LABELS, confidence=0.2)
    torch.testing.assert_close(found, response.kd(student[sure], teacher[sure], LABELS))
    nobody = in_a_total(response.kd, student.requires_grad_(), teacher, LABELS, confidence=0.9999999)
    nobody.backward()
    assert float(nobody.detach()) == 0
    assert not student.grad.any()


def test_confidence_without_the_teacher_s_logits_is_an_error_that_says_so():
    one = Knowledge(name="it", loss=response.mse, teacher=("pooled",), confidence=0.5)
    given = {"pooled": draw(2, ROWS, 5)}
    with pytest.raises(UsageError, match="confidence"):
        total_loss((one,), nn.ModuleDict(), {"logits": draw(1, ROWS, 5)}, given, LABELS)


def test_a_warm_up_raises_the_weight_with_the_share_of_the_training_that_is_done():
    (one,) = knowledge_from(DistillationSection(losses={"dkd": 2.0}), classes=5)
    assert one.weight_at(1 / 24) == pytest.approx(1.0)
    assert (one.weight_at(1 / 12), one.weight_at(1.0)) == (2.0, 2.0)
    student, teacher = draw(1, ROWS, 5), draw(2, ROWS, 5)
    half = in_a_total(response.kd, student, teacher, dataclasses.replace(LABELS, progress=0.25), warm_up=0.5)
    torch.testing.assert_close(half, 0.5 * response.kd(student, teacher, LABELS))
