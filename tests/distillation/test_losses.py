from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.distillation.knowledge import Batch
from edgekd.distillation.losses import knowledge_from, teacher_taps
from edgekd.distillation.losses.intermediate import pooled_mse, projector
from edgekd.distillation.losses.response import cross_entropy, dist, kl, pearson
from edgekd.errors import ConfigError
from edgekd.values.job import DistillationSection

BATCH = Batch(labels=torch.tensor([0, 1, 2, 1]))


def logits(seed: int, rows: int = 4, classes: int = 5) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss: object, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    student = student.clone().requires_grad_()
    loss(student, teacher, BATCH).backward()
    return student.grad


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 20))
def test_kl_has_the_gradient_of_its_formula(seed: int, temperature: float):
    student, teacher = logits(seed), logits(seed + 1)
    expected = temperature * (
        torch.softmax(student / temperature, 1) - torch.softmax(teacher / temperature, 1)
    )
    found = gradient(kl(temperature), student, teacher)
    torch.testing.assert_close(found, expected / len(student), atol=1e-5, rtol=1e-4)


def test_kl_at_high_temperature_matches_centred_logits():
    student, teacher = logits(1), logits(2)
    gap = student - teacher
    limit = (gap - gap.mean(dim=1, keepdim=True)) / gap.numel()
    torch.testing.assert_close(gradient(kl(1e3), student, teacher), limit, atol=1e-4, rtol=2e-2)


def test_kl_without_its_factor_would_shrink_with_the_square_of_the_temperature():
    norms = [gradient(kl(temperature), logits(1), logits(2)).norm() for temperature in (4.0, 20.0)]
    assert 0.8 < norms[0] / norms[1] < 1.25


def test_kl_is_summed_over_classes_and_averaged_over_the_batch():
    student, teacher = logits(1), logits(2)
    p, q = torch.softmax(teacher / 2, 1), torch.softmax(student / 2, 1)
    expected = 4 * (p * (p / q).log()).sum() / len(student)
    torch.testing.assert_close(kl(2.0)(student, teacher, BATCH).double(), expected, atol=1e-6, rtol=1e-5)


def test_kl_is_forward_and_not_reverse():
    student, teacher = logits(1) * 3, logits(2)
    assert not torch.isclose(kl(1.0)(student, teacher, BATCH), kl(1.0)(teacher, student, BATCH), rtol=1e-2)


@pytest.mark.parametrize("loss", [kl(1.0), kl(4.0), dist(1.0), dist(4.0), pooled_mse])
def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(loss: object):
    student = logits(3)
    assert abs(float(loss(student, student, BATCH))) < 1e-6
    assert gradient(loss, student, student).abs().max() < 1e-6


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_the_correlation_of_dist_ignores_positive_scale_and_shift_of_a_row(
    seed: int, scale: float, shift: float
):
    first, second = torch.softmax(logits(seed), 1), torch.softmax(logits(seed + 1), 1)
    scales = scale ** torch.linspace(-1, 1, len(first), dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        pearson(scales * first + shift, second), pearson(first, second), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(
        pearson(-scales * first, second), -pearson(first, second), atol=1e-6, rtol=1e-6
    )


def test_dist_is_one_minus_the_mean_correlation_over_classes_and_over_the_batch():
    student, teacher = logits(1), logits(2)
    p, q = torch.softmax(student, 1), torch.softmax(teacher, 1)
    rows = sum(torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(p, q)) / len(p)
    columns = sum(torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(p.T, q.T)) / len(p.T)
    found = dist(1.0)(student, teacher, BATCH).double()
    torch.testing.assert_close(found, 2 - rows - columns, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loss", [kl(1.0), dist(1.0), pooled_mse])
@pytest.mark.parametrize(("rows", "factor"), [(1, 1.0), (4, 0.0), (1, 0.0), (4, 1e4)])
def test_one_sample_constant_logits_and_huge_ones_give_finite_losses_and_gradients(
    loss: object, rows: int, factor: float
):
    student, teacher = (logits(seed, rows).float() * factor for seed in (1, 2))
    assert torch.isfinite(loss(student, teacher, BATCH))
    assert torch.isfinite(gradient(loss, student, teacher)).all()


def test_losses_are_fp32_whatever_comes_in():
    for loss in (kl(1.0), dist(1.0), pooled_mse):
        assert loss(logits(1).bfloat16(), logits(2).half(), BATCH).dtype == torch.float32


def test_cross_entropy_takes_shares_of_mixed_images():
    student = logits(1)
    shares = 0.3 * torch.eye(5)[BATCH.labels] + 0.7 * torch.eye(5)[[4, 3, 0, 0]]
    expected = -(shares * torch.log_softmax(student.float(), 1)).sum(dim=1).mean()
    torch.testing.assert_close(cross_entropy(student, shares, BATCH), expected)
    hard = cross_entropy(student, BATCH.labels, BATCH)
    torch.testing.assert_close(hard, cross_entropy(student, torch.eye(5)[BATCH.labels], BATCH))


def test_the_projector_maps_widths():
    assert projector(8, 24)(torch.zeros(2, 8)).shape == (2, 24)


def test_dist_is_refused_for_two_classes_before_any_step():
    with pytest.raises(ConfigError, match="at least 3 classes") as caught:
        knowledge_from(DistillationSection(), classes=2)
    assert caught.value.exit_code == 2
    assert "kd" in caught.value.mend


def test_an_unknown_loss_names_the_one_meant():
    with pytest.raises(ConfigError, match="did you mean 'dist'"):
        knowledge_from(DistillationSection(losses={"dst": 1.0}), classes=10)


def test_a_loss_of_weight_nought_is_left_out():
    found = knowledge_from(DistillationSection(losses={"ce": 1.0, "dist": 0.0}), classes=2)
    assert [one.name for one in found] == ["ce"]


def test_only_what_the_losses_ask_for_is_kept_of_the_teacher():
    assert teacher_taps(knowledge_from(DistillationSection(), classes=10)) == ("logits",)
    recipe = DistillationSection(losses={"ce": 1.0, "pooled": 2.0})
    assert teacher_taps(knowledge_from(recipe, classes=10)) == ("logits", "pooled")
