"""Losses that bound the mutual information of student and teacher from below; their adapters do the learning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distillation.knowledge import Batch
from edgekd.distillation.losses.algebra import unit


def vid(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Learn the teacher's features as a Gaussian. Ahn et al. 2019 (VID): its negative log-likelihood.

    Half of (t - mean)^2 / variance + log variance, mean over all elements; the constant log(2 pi) / 2 is left out.

    Args:
        student: means, then variances, along dimension 1: (B, 2 C, ...).
        teacher: features (B, C, ...).
        _batch: is not used.

    """
    mean, variance = student.chunk(2, dim=1)
    return 0.5 * ((teacher - mean).square() / variance + variance.log()).mean()


def infonce(student: Tensor, teacher: Tensor, _batch: Batch, *, tau: float = 0.07) -> Tensor:
    """Tell the teacher's view of a sample from those of the rest of the batch. Van den Oord et al. 2018.

    For embeddings (B, D); the mutual information is at least log B minus this.
    """
    logits = unit(student) @ unit(teacher).T / tau
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def crd(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Tell the own sample from those in a bank, on both sides. Tian et al. 2020 (CRD).

    Summed over a sample's negatives, mean over the batch.

    Args:
        student: log-odds (B, 1 + K) of "the same sample", the own one first, against the teacher's bank.
        teacher: likewise, of the teacher against the student's bank.
        _batch: is not used.

    """
    return _told_apart(student) + _told_apart(teacher)


def _told_apart(odds: Tensor) -> Tensor:
    return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(dim=1)).mean()
