"""Losses on predicted numbers (B, K), labels in `batch.labels` of the same shape; standardise targets first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distillation.knowledge import Batch

_NORMAL = 1.4826  # the median absolute deviation of a normal distribution, times this, is its deviation


def bounded(
    student: Tensor, teacher: Tensor, batch: Batch, *, margin: float = 0.0, nu: float = 0.5
) -> Tensor:
    """Learn the labels, and more where worse than the teacher. Chen et al. 2017 (teacher bounded).

    Smooth L1 to the labels, plus nu times a sample's squared error where, with the margin, it exceeds the teacher's.
    """
    own = (student - batch.labels).square().flatten(1).sum(dim=1)
    bound = (teacher - batch.labels).square().flatten(1).sum(dim=1)
    return F.smooth_l1_loss(student, batch.labels) + nu * (own * (own + margin > bound)).mean()


def rejecting(student: Tensor, teacher: Tensor, batch: Batch, *, cut: float = 3.0) -> Tensor:
    """Imitate the teacher, and learn the labels that it finds likely. After Takamoto et al. 2020 (TOR).

    A label is rejected where it is more than `cut` robust deviations (median absolute deviation over the batch) from
    what the teacher says. A student of two heads (B, 2 K) learns labels with the first and the teacher with the second.
    """
    gap = (batch.labels - teacher).abs()
    likely = gap <= cut * _NORMAL * gap.median(dim=0).values
    heads = student.chunk(2, dim=1) if student.shape[1] == 2 * teacher.shape[1] else (student, student)
    labels = ((heads[0] - batch.labels).square() * likely).sum() / likely.sum().clamp_min(1)
    return labels + F.mse_loss(heads[1], teacher)


def ail(
    student: Tensor, teacher: Tensor, batch: Batch, *, alpha: float = 0.5, eta: float | None = None
) -> Tensor:
    """Imitate the teacher as far as it can be trusted. Saputra et al. 2019 (attentive imitation loss).

    alpha (student - label)^2 + (1 - alpha) trust (student - teacher)^2, summed over K, mean over the batch.
    """
    label = (student - batch.labels).square().flatten(1).sum(dim=1)
    imitation = (student - teacher).square().flatten(1).sum(dim=1)
    return (alpha * label + (1 - alpha) * trust(teacher, batch.labels, eta) * imitation).mean()


def aht(student: Tensor, teacher: Tensor, batch: Batch, *, eta: float | None = None) -> Tensor:
    """Match features as far as the teacher can be trusted. Saputra et al. 2019 (attentive hint training).

    The trust is in `batch.outputs`, what the teacher predicts.
    """
    if batch.outputs is None:
        raise ValueError("attentive hints need the teacher's outputs in the batch")
    gap = (student - teacher).square().flatten(1).sum(dim=1)
    return (trust(batch.outputs, batch.labels, eta) * gap).mean()


def trust(teacher: Tensor, labels: Tensor, eta: float | None) -> Tensor:
    """Return 1 - error / eta (B,), of the squared error.

    eta is its range over the training set (Saputra), or where it is not given over the batch.
    """
    error = (teacher - labels).square().flatten(1).sum(dim=1)
    return 1 - error / ((error.max() - error.min()).clamp_min(1e-12) if eta is None else eta)


def differences(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Match the differences of pairs, whatever the offset: squared, mean over pairs and K.

    For predictions (B, K), or for the scores (B, N) of lists with the pairs inside each list: see `ranking`.
    """
    gap = student - teacher
    return (
        2 * (gap - gap.mean(dim=0)).square().mean()
    )  # mean over pairs of (g_i - g_j)^2 is twice the variance


def ridge(inputs: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Return ridge regression's weights (D,) or (D, K): (X'X / n + penalty)^-1 X'y / n."""
    gram = inputs.T @ inputs / len(inputs)
    weights: Tensor = torch.linalg.solve(_loaded(gram, penalty), inputs.T @ targets / len(inputs))
    return weights


def self_distilled(inputs: Tensor, targets: Tensor, penalty: float, share: float) -> Tensor:
    """Return the weights of a ridge student taught by a share of a ridge teacher's predictions, in closed form.

    With b the teacher's weights and G = X'X / n: (1 - share) b + share (G + penalty)^-1 G b, which is
    b + share penalty db/dpenalty (arXiv 2602.17565).
    """
    taught = ridge(inputs, targets, penalty)
    return taught + share * _towards(inputs, taught, penalty)


def best_share(
    inputs: Tensor, targets: Tensor, penalty: float, held_inputs: Tensor, held_targets: Tensor
) -> float:
    """Return the share whose student errs least on held-out data; it may lie outside [0, 1].

    Its sign is opposite to the slope of the teacher's error over the penalty (arXiv 2602.17565).
    """
    taught = ridge(inputs, targets, penalty)
    step = held_inputs @ _towards(inputs, taught, penalty)
    error = held_inputs @ taught - held_targets
    return float(-(step * error).sum() / step.square().sum())


def _towards(inputs: Tensor, taught: Tensor, penalty: float) -> Tensor:
    """Return penalty db/dpenalty = -penalty (G + penalty)^-1 b."""
    gram = inputs.T @ inputs / len(inputs)
    step: Tensor = -penalty * torch.linalg.solve(_loaded(gram, penalty), taught)
    return step


def _loaded(gram: Tensor, penalty: float) -> Tensor:
    return gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
