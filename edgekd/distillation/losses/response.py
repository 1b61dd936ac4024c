"""Losses on the output: logits (B, C) of the student against logits of the teacher, or labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distillation.knowledge import Batch
from edgekd.distillation.losses.algebra import pearson, softened_kl

_STANDARD = 1e-7  # added to the variance as its square: logit standardisation's own


def cross_entropy(student: Tensor, labels: Tensor, _batch: Batch) -> Tensor:
    """Compare logits with the labels: (B,) numbers, or (B, C) shares of mixed images."""
    return F.cross_entropy(student, labels)


def kd(student: Tensor, teacher: Tensor, _batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """Match softened probabilities: T^2 KL(teacher || student). Hinton et al. 2015, eq. 4."""
    return softened_kl(student, teacher, temperature)


def mse(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Match logits, or features that an adapter mapped: mean squared error (Ba and Caruana 2014)."""
    return F.mse_loss(student, teacher)


def dkd(
    student: Tensor,
    teacher: Tensor,
    batch: Batch,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 2.0,
) -> Tensor:
    """Match the target's probability and the others' distribution apart. Zhao et al. 2022 (DKD), eq. 7.

    alpha T^2 KL(target or not) + beta T^2 KL(among the others). With 2 classes the second is always 0.
    """
    target = batch.numbers[:, None]
    columns = torch.arange(student.shape[1] - 1, device=student.device)
    others = columns + (columns >= target)  # (B, C - 1): every class but the target
    rest_s, rest_t = student.gather(1, others) / temperature, teacher.gather(1, others) / temperature
    binary_s = torch.stack([student.gather(1, target)[:, 0] / temperature, rest_s.logsumexp(dim=1)], dim=1)
    binary_t = torch.stack([teacher.gather(1, target)[:, 0] / temperature, rest_t.logsumexp(dim=1)], dim=1)
    split = softened_kl(binary_s, binary_t, 1.0)  # a softmax of two log-sums is the probability of each
    return (alpha * split + beta * softened_kl(rest_s, rest_t, 1.0)) * temperature**2


def dist(
    student: Tensor,
    teacher: Tensor,
    _batch: Batch,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """Match correlations of probabilities over classes and over the batch. Huang et al. 2022 (DIST), eq. 7-10.

    With 2 classes the first is always 1 or -1, and has no gradient.
    """
    learnt, given = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    inter = 1 - pearson(learnt, given).mean()
    intra = 1 - pearson(learnt.T, given.T).mean()
    return (beta * inter + gamma * intra) * temperature**2


def lskd(student: Tensor, teacher: Tensor, _batch: Batch, *, temperature: float = 2.0) -> Tensor:
    """Match softened z-scores of the logits. Sun et al. 2024 (logit standardisation).

    With 2 classes every z-score is 1/sqrt(2) or its negative, and has no gradient.
    """
    return softened_kl(_z_scores(student), _z_scores(teacher), temperature)


def nkd(
    student: Tensor, teacher: Tensor, batch: Batch, *, temperature: float = 1.0, gamma: float = 1.5
) -> Tensor:
    """Weigh the target by the teacher's belief, and match the others normalised. Yang et al. 2023 (NKD)."""
    target = batch.numbers[:, None]
    columns = torch.arange(student.shape[1] - 1, device=student.device)
    others = columns + (columns >= target)
    belief = F.softmax(teacher, dim=1).gather(1, target)
    hit = (belief * F.log_softmax(student, dim=1).gather(1, target)).mean()
    learnt = F.log_softmax(student.gather(1, others) / temperature, dim=1)
    given = F.softmax(teacher.gather(1, others) / temperature, dim=1)
    return -hit - gamma * temperature**2 * (given * learnt).sum(dim=1).mean()


def wttm(student: Tensor, teacher: Tensor, _batch: Batch, *, gamma: float = 0.2) -> Tensor:
    """Match the teacher's probabilities to a power, weighted by their sum. Zheng and Yang 2024 (WTTM).

    The student stays as it is; with u = p^gamma / sum p^gamma, each sample counts sum p^gamma times KL(u || student).
    """
    powered = gamma * F.log_softmax(teacher, dim=1)
    mass = powered.logsumexp(dim=1, keepdim=True)
    given, learnt = powered - mass, F.log_softmax(student, dim=1)
    return (mass.exp() * given.exp() * (given - learnt)).sum(dim=1).mean()


def bkd(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Learn each class as a question of its own: binary cross-entropy, mean over batch and classes (vanillaKD)."""
    return F.binary_cross_entropy_with_logits(student, F.softmax(teacher, dim=1))


def ofa(
    student: Tensor, teacher: Tensor, batch: Batch, *, temperature: float = 1.0, epsilon: float = 1.5
) -> Tensor:
    """Learn at a stage's own head, the target raised by a power. Hao et al. 2023 (OFA-KD)."""
    sure = F.one_hot(batch.numbers, student.shape[1]).to(student.dtype)
    given = (F.softmax(teacher / temperature, dim=1) + sure) ** epsilon - sure
    return -(given * F.log_softmax(student / temperature, dim=1)).sum(dim=1).mean()


def _z_scores(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred * torch.rsqrt(logits.var(dim=1, keepdim=True) + _STANDARD**2)
