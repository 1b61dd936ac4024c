"""Several teachers as one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.distillation.mixture import Member, Mixture, renormalised


class Says(nn.Module):
    """Answers the same of every sample."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([logits]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(inputs), -1)


def test_the_probabilities_of_classes_are_averaged_by_weight():
    one, other = Says(2.0, 0.0, -1.0), Says(-1.0, 3.0, 0.5)
    mixture = Mixture([Member(module=one, weight=3.0), Member(module=other, weight=1.0)], probabilities=True)
    wanted = 0.75 * one.logits.softmax(1) + 0.25 * other.logits.softmax(1)
    torch.testing.assert_close(mixture(torch.zeros(4, 1, 2, 2)).softmax(1), wanted.expand(4, -1))


def test_a_certain_teacher_keeps_the_logits_finite():
    mixture = Mixture([Member(module=Says(1000.0, -1000.0), weight=1.0)] * 2, probabilities=True)
    assert mixture(torch.zeros(1, 1)).isfinite().all()


def test_other_outputs_are_averaged_themselves():
    members = [Member(module=Says(1.0, 4.0), weight=1.0), Member(module=Says(3.0, 0.0), weight=1.0)]
    torch.testing.assert_close(
        Mixture(members, probabilities=False)(torch.zeros(1, 1)), torch.tensor([[2.0, 2.0]])
    )


def test_each_teacher_sees_images_as_it_was_trained_with_them():
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    own_mean, own_std = (0.5, 0.5, 0.5), (0.5, 0.4, 0.1)

    def normalised(by: tuple[float, ...], spread: tuple[float, ...]) -> torch.Tensor:
        return (pixels - torch.tensor(by)[:, None, None]) / torch.tensor(spread)[:, None, None]

    scale, shift = renormalised(mean, std, own_mean=own_mean, own_std=own_std)
    mixture = Mixture(
        [Member(module=nn.Identity(), weight=1.0, scale=scale, shift=shift)], probabilities=False
    )
    torch.testing.assert_close(mixture(normalised(mean, std)), normalised(own_mean, own_std))


@pytest.mark.parametrize("probabilities", [True, False])
def test_it_is_exported_as_one_network(*, probabilities: bool):
    members = [Member(module=nn.Linear(4, 3), weight=1.0), Member(module=nn.Linear(4, 3), weight=2.0)]
    mixture = Mixture(members, probabilities=probabilities).eval()
    traced = torch.export.export(mixture, (torch.zeros(1, 4),)).module()
    given = torch.randn(1, 4)
    torch.testing.assert_close(traced(given), mixture(given))
