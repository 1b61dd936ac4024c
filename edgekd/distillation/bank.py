"""CRD's bank: what both networks last said of every training sample, for a batch to be told apart from."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.distillation.knowledge import Batch, Shapes, Tensors
from edgekd.errors import ConfigError

_UNKNOWN = -1  # class of a sample that was not seen yet
_NEVER = -torch.inf  # log-odds of a sample of the same class: no negative


class Bank(nn.Module):
    """Embeddings of unit length on both sides, and one of each for every sample (Tian et al. 2020, section 3.2).

    It is state of the training, saved and restored with it, and no gradient reaches it. Negatives are drawn once a
    batch and shared by its samples; those of a sample's own class do not count for it, as in the reference code. When
    as many are asked for as there are samples, all are taken.
    """

    students: Tensor  # (N, width)
    teachers: Tensor
    classes: Tensor  # (N,)
    norms: Tensor  # (2,): log Z of both sides, fixed by the first batch; NaN before it

    def __init__(
        self,
        shapes: Shapes,
        *,
        width: int = 128,
        negatives: int = 16384,
        tau: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        if len(shapes.student) != 1 or len(shapes.teacher) != 1:
            raise ConfigError(f"the loss `{shapes.name}` takes one tap of each network")
        self.student = nn.Linear(math.prod(shapes.student[0]), width)
        self.teacher = nn.Linear(math.prod(shapes.teacher[0]), width)
        self.negatives, self.tau, self.momentum = min(negatives, shapes.samples), tau, momentum
        # Unit vectors of random direction, as the reference code: nothing is known of any sample.
        self.register_buffer("students", F.normalize(torch.randn(shapes.samples, width)))
        self.register_buffer("teachers", F.normalize(torch.randn(shapes.samples, width)))
        self.register_buffer("classes", torch.full((shapes.samples,), _UNKNOWN))
        self.register_buffer("norms", torch.full((2,), torch.nan))

    def forward(self, students: Tensors, teachers: Tensors, batch: Batch) -> tuple[Tensors, Tensors]:
        """Return log-odds (B, 1 + K) that a sample of the other side's bank is the same; the own one first."""
        if batch.indices is None:
            raise ValueError("the bank needs to know which samples a batch holds")
        learnt = F.normalize(self.student(students[0].flatten(1)))
        given = F.normalize(self.teacher(teachers[0].flatten(1)))
        drawn = self._drawn(batch.indices.device)
        alike = self.classes[drawn] == batch.numbers[:, None]  # (B, K)
        alike |= drawn == batch.indices[:, None]
        # Copies of the bank's rows, for it is changed in place below, before gradients are taken.
        odds = (
            self._odds(0, learnt, self.teachers[batch.indices], self.teachers[drawn], alike),
            self._odds(1, given, self.students[batch.indices], self.students[drawn], alike),
        )
        self._remember(learnt, given, batch)
        return odds[:1], odds[1:]

    def _drawn(self, device: torch.device) -> Tensor:
        count = len(self.classes)
        if self.negatives == count:
            return torch.arange(count, device=device)
        return torch.randint(count, (self.negatives,), device=device)

    def _odds(self, side: int, own: Tensor, same: Tensor, others: Tensor, alike: Tensor) -> Tensor:
        """Return log(P / (K / N)) with P = e^(cosine / tau) / Z."""
        count = len(self.classes)
        scores = torch.cat([(own * same).sum(dim=1, keepdim=True), own @ others.T], dim=1) / self.tau
        if torch.isnan(self.norms[side]):
            self.norms[side] = scores.detach().exp().mean().log() + math.log(count)
        odds = scores - self.norms[side] - math.log(len(others) / count)
        return odds.masked_fill(F.pad(alike, (1, 0)), _NEVER)

    @torch.no_grad()
    def _remember(self, learnt: Tensor, given: Tensor, batch: Batch) -> None:
        assert batch.indices is not None  # noqa: S101 - checked in forward
        for bank, new in ((self.students, learnt), (self.teachers, given)):
            bank[batch.indices] = F.normalize(torch.lerp(new.detach(), bank[batch.indices], self.momentum))
        self.classes[batch.indices] = batch.numbers
