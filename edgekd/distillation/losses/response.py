"""Losses on the output: cross-entropy against the labels, KL and DIST against the teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distillation.knowledge import Batch, Loss

_EPSILON = 1e-8  # of DIST's reference code; inside the root, so that constant rows have a gradient


def cross_entropy(student: Tensor, labels: Tensor, _batch: Batch) -> Tensor:
    """Compare logits (B, C) with labels: (B,) numbers, or (B, C) shares of mixed images."""
    return F.cross_entropy(student.float(), labels)


def kl(temperature: float) -> Loss:
    """Make the loss of Hinton et al. 2015, eq. 4: T^2 KL(teacher || student), summed over classes, mean over B."""

    def loss(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
        learnt = F.log_softmax(student.float() / temperature, dim=1)
        given = F.log_softmax(teacher.float() / temperature, dim=1)
        # Soft targets scale gradients by 1/T^2; undo it so the weight means the same at any temperature.
        return F.kl_div(learnt, given, reduction="batchmean", log_target=True) * temperature**2

    return loss


def dist(temperature: float) -> Loss:
    """Make the loss of Huang et al. 2022 (DIST), eq. 7 to 10, with beta = gamma = 1.

    Correlation of the probabilities of each sample over classes, and of each class over the batch. Needs at
    least 3 classes: with 2 the first is always 1 or -1, and has no gradient.
    """

    def loss(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
        learnt = F.softmax(student.float() / temperature, dim=1)
        given = F.softmax(teacher.float() / temperature, dim=1)
        inter = 1 - pearson(learnt, given).mean()
        intra = 1 - pearson(learnt.T, given.T).mean()
        return (inter + intra) * temperature**2

    return loss


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Correlate the rows of two matrices: (R, K), (R, K) -> (R,); a constant row correlates with nothing."""
    first = first - first.mean(dim=1, keepdim=True)
    second = second - second.mean(dim=1, keepdim=True)
    power = first.square().sum(dim=1) * second.square().sum(dim=1)
    return (first * second).sum(dim=1) * torch.rsqrt(power + _EPSILON**2)
