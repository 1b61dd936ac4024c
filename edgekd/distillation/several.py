"""Several teachers that are tapped apart, and weighed for each sample by what they say of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.distillation.knowledge import Batch, Shapes, Tensors
from edgekd.errors import ConfigError


class Confident(nn.Module):
    """Make one teacher of several: of a sample, those count more that give its label more (Zhang et al. 2022, CA-MKD).

    With K teachers, w_k = (1 - softmax_k(CE_k)) / (K - 1), eq. 3. Their softened probabilities are averaged by these,
    which for KL is the published sum of K losses, up to a constant. Nothing here learns.
    """

    def __init__(self, shapes: Shapes, *, temperature: float = 1.0) -> None:
        super().__init__()
        if len(shapes.teacher) < 2:  # noqa: PLR2004 - of one there is nothing to weigh
            raise ConfigError(
                f"the loss `{shapes.name}` weighs several teachers, and taps one",
                cause="what [teacher] names is `members.0` of all, and [[teacher.others]] are those that follow",
                mend=f'write [distillation.losses.{shapes.name}] and below it teacher = ["members.0", "members.1"]',
            )
        self.temperature = temperature

    def forward(self, students: Tensors, teachers: Tensors, batch: Batch) -> tuple[Tensors, Tensors]:
        """Return the student's logits (B, C) once, and logits that stand for all teachers."""
        shares = confidence_shares(teachers, batch.labels)
        logs = [F.log_softmax(one / self.temperature, dim=1) for one in teachers]
        mixed = (torch.stack(logs) + shares.log()[:, :, None]).logsumexp(dim=0)
        return students[:1], (mixed * self.temperature,)


def confidence_shares(teachers: Tensors, labels: Tensor) -> Tensor:
    """Return the share (K, B) of each teacher in each sample, by its cross-entropy; they sum to 1 over the teachers."""
    losses = torch.stack([F.cross_entropy(one, labels, reduction="none") for one in teachers])
    return (1 - losses.softmax(dim=0)).clamp_min(0) / (len(teachers) - 1)
