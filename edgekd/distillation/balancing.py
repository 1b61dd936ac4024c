"""How weighted losses become one: summed as they are, by learned uncertainty, or by their running magnitude."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_SLOW = 0.99  # decay a step of a running magnitude
_LEAST = 1e-12


class Uncertainty(nn.Module):
    """Learn how much to trust each loss: weight e^-s loss + s, s its log variance (Kendall et al. 2018, eq. 7)."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(len(names)))

    def forward(self, terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Sum the losses, in the order of the names."""
        weighted = torch.stack([weight * one for weight, one in zip(weights, terms)])
        return ((-self.log_variances).exp() * weighted + self.log_variances).sum()


class Magnitude(nn.Module):
    """Divide each loss by the running mean of its size, so that weights are shares, whatever the units."""

    means: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.register_buffer("means", torch.full((len(names),), torch.nan))

    def forward(self, terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Sum the losses, in the order of the names; the first step sets the means."""
        losses = torch.stack([*terms])
        seen = losses.detach().abs()
        self.means = torch.where(torch.isnan(self.means), seen, torch.lerp(seen, self.means, _SLOW))
        return (losses.new_tensor(weights) * losses / (self.means + _LEAST)).sum()


def balancer(kind: str, names: Sequence[str]) -> nn.Module | None:
    """Make what `[distillation] balance` names; None: the plain sum."""
    return {"uncertainty": Uncertainty, "magnitude": Magnitude}[kind](names) if kind != "fixed" else None
