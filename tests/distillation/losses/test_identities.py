"""The exact identities of the methods; U13 to U15 are beside the table, the teachers and the trainings."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.distillation.adapters import Gaussian
from edgekd.distillation.knowledge import Batch, Shapes
from edgekd.distillation.losses import dense, generation, information, ranking, regression, relation, response
from edgekd.distillation.losses.algebra import pearson, softened_kl
from tests.distillation.examples import CLASSES, LABELS, ROWS, Example, draw, example, gradient

STUDENT, TEACHER = draw(1, ROWS, CLASSES, scale=2), draw(2, ROWS, CLASSES, scale=2)


def logit_gradient(temperature: float) -> Tensor:
    return gradient(
        Example(loss=partial(response.kd, temperature=temperature), student=STUDENT, teacher=TEACHER)
    )


def test_u1_with_its_factor_kd_at_high_temperature_matches_centred_logits():
    gap = STUDENT - TEACHER
    limit = (gap - gap.mean(dim=1, keepdim=True)) / gap.numel()
    torch.testing.assert_close(logit_gradient(1e5), limit, rtol=1e-4, atol=1e-9)
    norms = [float(logit_gradient(temperature).norm()) for temperature in (4.0, 20.0, 200.0)]
    assert max(norms) / min(norms) < 1.25  # without the factor they would shrink 2500-fold


def test_u1_the_gradient_of_kd_is_the_temperature_times_the_gap_of_probabilities():
    for temperature in (1.0, 4.0):
        gap = torch.softmax(STUDENT / temperature, 1) - torch.softmax(TEACHER / temperature, 1)
        torch.testing.assert_close(logit_gradient(temperature), temperature * gap / ROWS)


def test_u2_kd_is_summed_over_classes_and_averaged_over_the_batch():
    whole = response.kd(STUDENT, TEACHER, LABELS)
    rows = [response.kd(STUDENT[at : at + 1], TEACHER[at : at + 1], LABELS) for at in range(ROWS)]
    torch.testing.assert_close(whole, torch.stack(rows).mean())
    p, q = torch.softmax(TEACHER[0], 0), torch.softmax(STUDENT[0], 0)
    torch.testing.assert_close(rows[0], (p * (p / q).log()).sum())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_u3_kd_is_its_target_part_and_the_others_weighted_by_their_mass(temperature: float):
    kd = response.kd(STUDENT, TEACHER, LABELS, temperature=temperature)
    parts = 0.0
    for at in range(ROWS):
        one = Batch(labels=LABELS.labels[at : at + 1])
        s, t = STUDENT[at : at + 1], TEACHER[at : at + 1]
        rest = 1 - torch.softmax(t / temperature, 1)[0, one.labels[0]]
        parts += response.dkd(s, t, one, temperature=temperature, alpha=1.0, beta=float(rest)) / ROWS
    assert abs(float(kd - parts)) < 1e-14


def test_u3_leaving_the_target_out_is_what_a_mask_of_minus_1000_does():
    mask = 1000 * nn.functional.one_hot(LABELS.labels, CLASSES)
    published = softened_kl(STUDENT / 4 - mask, TEACHER / 4 - mask, 1.0) * 16
    torch.testing.assert_close(
        response.dkd(STUDENT, TEACHER, LABELS, alpha=0.0, beta=1.0), published, rtol=1e-12, atol=1e-15
    )


def test_u4_the_correlation_of_dist_ignores_positive_scale_and_shift_of_each_row():
    first, second = torch.softmax(STUDENT, 1), torch.softmax(TEACHER, 1)
    scale, shift = draw(3, ROWS, 1).exp(), draw(4, ROWS, 1)
    torch.testing.assert_close(
        pearson(scale * first + shift, second), pearson(first, second), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(pearson(-scale * first, second), -pearson(first, second), rtol=1e-9, atol=1e-9)
    assert abs(float(response.dist(STUDENT, STUDENT, LABELS))) < 1e-12


def test_u5_standardised_logits_ignore_scale_and_shift():
    scale, shift = draw(3, ROWS, 1).exp(), draw(4, ROWS, 1, scale=10)
    found = response.lskd(scale * STUDENT + shift, TEACHER, LABELS)
    torch.testing.assert_close(found, response.lskd(STUDENT, TEACHER, LABELS), rtol=1e-6, atol=1e-9)


def turned(rows: Tensor) -> Tensor:
    return rows @ torch.linalg.qr(draw(5, rows.shape[1], rows.shape[1])).Q


@pytest.mark.parametrize("loss", [relation.sp, relation.rkd, relation.irg, relation.pkt])
def test_u6_relations_ignore_rotation_and_scale(loss: object):
    student, teacher = draw(1, ROWS, 4), draw(2, ROWS, 4)
    before = loss(student, teacher, LABELS)
    torch.testing.assert_close(loss(3 * turned(student), teacher, LABELS), before, rtol=1e-9, atol=1e-12)
    assert float(loss(student, 0.1 * turned(student), LABELS)) == pytest.approx(0, abs=1e-12)


def test_u6_distances_and_angles_ignore_a_shift_and_similarities_do_not():
    student, teacher, shift = draw(1, ROWS, 4), draw(2, ROWS, 4), draw(3, 4)
    for loss in (relation.rkd, relation.irg):
        before = loss(student, teacher, LABELS)
        torch.testing.assert_close(loss(student + shift, teacher, LABELS), before, rtol=1e-9, atol=1e-12)
    assert (
        abs(float(relation.sp(student + shift, teacher, LABELS) - relation.sp(student, teacher, LABELS)))
        > 1e-3
    )


def test_u7_channel_wise_distillation_ignores_a_constant_of_each_channel():
    given = example("cwd")
    moved = given.student + draw(3, ROWS, 3, 1, 1, scale=10)
    torch.testing.assert_close(dense.cwd(moved, given.teacher, LABELS), given.value())


def test_u8_the_generalised_divergence_has_forward_and_reverse_kl_as_its_limits():
    given = example("gkd")
    loss = partial(generation.gkd, given.student, given.teacher, given.batch)
    small = 1e-7
    torch.testing.assert_close(loss(beta=small) / small, loss(beta=0.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss(beta=1 - small) / small, loss(beta=1.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss(beta=0.0), generation.word(given.student, given.teacher, given.batch))
    torch.testing.assert_close(loss(beta=1.0), generation.reverse(given.student, given.teacher, given.batch))
    swapped = generation.gkd(given.teacher, given.student, given.batch, beta=0.5)
    torch.testing.assert_close(loss(beta=0.5), swapped)


@pytest.mark.parametrize("top", [1, 3, 12])
def test_u9_relaxed_ranking_is_a_plackett_luce_model_cut_off_after_the_top(top: int):
    """The probability of drawing the top in order, without replacement, by chances in proportion to e^score."""
    student, teacher = draw(1, 1, 12), draw(2, 1, 12)
    left, chances, probability = list(range(12)), student[0].exp().tolist(), 1.0
    for item in teacher[0].argsort(descending=True)[:top].tolist():
        probability *= chances[item] / sum(chances[other] for other in left)
        left.remove(item)
    found = ranking.rrd(student, teacher, LABELS, top=top)
    assert float(found) == pytest.approx(-math.log(probability), rel=1e-12)


def ridge_data(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weights = draw(seed, 5)
    inputs, held = draw(seed + 1, 30, 5), draw(seed + 2, 200, 5)
    return inputs, inputs @ weights + draw(seed + 3, 30), held, held @ weights + draw(seed + 4, 200)


@pytest.mark.parametrize("penalty", [0.01, 0.5, 10.0])
def test_u10_a_self_distilled_ridge_moves_along_its_slope_over_the_penalty(penalty: float):
    inputs, targets, *_ = ridge_data(0)
    taught = regression.ridge(inputs, targets, penalty)
    # What a student is taught in practice: a mixture of labels and the teacher's predictions.
    mixed = 0.3 * targets + 0.7 * inputs @ taught
    by_training = regression.ridge(inputs, mixed, penalty)
    found = regression.self_distilled(inputs, targets, penalty, 0.7)
    torch.testing.assert_close(found, by_training, rtol=1e-12, atol=1e-13)
    slope = torch.autograd.functional.jacobian(
        lambda at: regression.ridge(inputs, targets, at), torch.tensor(penalty, dtype=torch.float64)
    )
    torch.testing.assert_close(found, taught + 0.7 * penalty * slope, rtol=1e-12, atol=1e-13)


def test_u10_the_best_share_has_the_sign_against_the_slope_of_the_error():
    for seed in range(0, 100, 5):
        inputs, targets, held, answers = ridge_data(seed)
        for penalty in (0.01, 0.5, 10.0):
            at = torch.tensor(penalty, dtype=torch.float64, requires_grad=True)
            error = (held @ regression.ridge(inputs, targets, at) - answers).square().mean()
            error.backward()
            share = regression.best_share(inputs, targets, penalty, held, answers)
            assert np.sign(share) == -np.sign(float(at.grad))
            best = regression.self_distilled(inputs, targets, penalty, share)
            assert (held @ best - answers).square().mean() < error


def test_u11_vid_with_the_best_mean_and_variance_is_the_gaussian_s_own_likelihood():
    teacher = draw(1, 50, 3, 2, 2) * torch.tensor([1.0, 2.0, 0.5]).view(1, 3, 1, 1)
    mean = teacher.mean(dim=(0, 2, 3), keepdim=True).expand_as(teacher)
    variance = teacher.var(dim=(0, 2, 3), keepdim=True, correction=0).expand_as(teacher)
    best = information.vid(torch.cat([mean, variance], 1), teacher, LABELS)
    nll = -torch.distributions.Normal(mean, variance.sqrt()).log_prob(teacher).mean()
    torch.testing.assert_close(best + 0.5 * math.log(2 * math.pi), nll)
    for factor in (0.9, 1.1):
        assert information.vid(torch.cat([mean, factor * variance], 1), teacher, LABELS) > best
        assert information.vid(torch.cat([mean + factor - 1, variance], 1), teacher, LABELS) > best


def test_u11_vid_starts_with_the_variance_that_is_asked_for():
    shapes = Shapes(name="vid", student=(torch.Size([4]),), teacher=(torch.Size([3]),), samples=9, classes=2)
    ((both,), _) = Gaussian(shapes, variance=5.0)((torch.zeros(2, 4),), (torch.zeros(2, 3),), LABELS)
    torch.testing.assert_close(both[:, 3:], torch.full((2, 3), 5.0))


def test_u12_what_infonce_bounds_is_at_most_the_logarithm_of_the_batch():
    for seed in range(20):
        student, teacher = draw(seed, ROWS, 4), draw(seed + 100, ROWS, 4)
        for pair in ((student, teacher), (student, student)):
            bound = math.log(ROWS) - float(information.infonce(*pair, LABELS, tau=0.07))
            assert bound <= math.log(ROWS)
    same = information.infonce(student, torch.ones(ROWS, 4).double(), LABELS)
    assert float(same) == pytest.approx(
        math.log(ROWS), rel=1e-6
    )  # a teacher that tells nothing: the bound is 0
    apart = torch.eye(ROWS, dtype=torch.float64)
    assert float(information.infonce(apart, apart, LABELS)) < 1e-5  # one that tells all: it is log B


ALIKE = (
    "kd", "mse", "dkd", "dist", "lskd", "pooled", "fitnet", "directions", "at", "reviewkd", "mgd", "rkd", "sp", "cc",
    "pkt", "ickd", "irg", "cwd", "pixels", "ld", "crosskd_classes", "crosskd_boxes", "aht", "differences",
    "score_differences", "word", "reverse", "gkd", "experts",
)  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_u16_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(name: str):
    given = example(name)
    alike = dataclasses.replace(given, student=given.teacher)
    assert float(alike.value()) == pytest.approx(0, abs=1e-12)
    assert gradient(alike).abs().max() < 1e-7


@pytest.mark.parametrize("name", ["listnet", "srd"])
def test_u16_where_the_least_loss_is_not_nought_equal_networks_still_have_no_gradient(name: str):
    given = example(name)
    assert gradient(dataclasses.replace(given, student=given.teacher)).abs().max() < 1e-12


def test_u16_binary_and_tempered_losses_rest_where_their_targets_are():
    target = torch.softmax(TEACHER, 1)
    binary = Example(loss=response.bkd, student=torch.logit(target), teacher=TEACHER)
    assert gradient(binary).abs().max() < 1e-12
    powered = Example(loss=response.wttm, student=0.2 * TEACHER, teacher=TEACHER)
    assert float(powered.value()) == pytest.approx(0, abs=1e-12)
    assert gradient(powered).abs().max() < 1e-12
