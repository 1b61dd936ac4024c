"""Several teachers that answer as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One teacher of several, and how its inputs differ from the task's."""

    module: nn.Module
    weight: float
    scale: tuple[float, ...] = ()  # a channel: what it takes is scale * input + shift; none: the input itself
    shift: tuple[float, ...] = ()


def renormalised(
    mean: Sequence[float], std: Sequence[float], *, own_mean: Sequence[float], own_std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and shift a channel that turn inputs normalised by mean and std into a teacher's own."""
    scale = tuple(given / own for given, own in zip(std, own_std))
    shift = tuple((given - own) / spread for given, own, spread in zip(mean, own_mean, own_std))
    return scale, shift


class Mixture(nn.Module):
    """The weighted mean of what its members say (Hinton et al. 2015, section 1: an ensemble as the teacher).

    Of classes their probabilities are averaged, and given back as logits; else the outputs are.
    """

    def __init__(self, members: Sequence[Member], *, probabilities: bool) -> None:
        super().__init__()
        self.members = nn.ModuleList(member.module for member in members)
        self.probabilities = probabilities
        whole = sum(member.weight for member in members)
        self.shares = tuple(member.weight / whole for member in members)
        for at, member in enumerate(members):
            if member.scale:
                shape = (1, len(member.scale), 1, 1)
                self.register_buffer(f"scale{at}", torch.tensor(member.scale).reshape(shape))
                self.register_buffer(f"shift{at}", torch.tensor(member.shift).reshape(shape))

    def forward(self, inputs: Tensor) -> Tensor:
        """Answer a batch (B, ...)."""
        answers = [module(self._as_taken(at, inputs)).float() for at, module in enumerate(self.members)]
        shares = torch.tensor(self.shares, device=inputs.device)
        if self.probabilities:
            logs = [answer.log_softmax(dim=1) + share.log() for answer, share in zip(answers, shares)]
            return torch.stack(logs).logsumexp(dim=0)
        return torch.stack([share * answer for answer, share in zip(answers, shares)]).sum(dim=0)

    def _as_taken(self, at: int, inputs: Tensor) -> Tensor:
        scale = getattr(self, f"scale{at}", None)
        return inputs if scale is None else inputs * scale + getattr(self, f"shift{at}")
