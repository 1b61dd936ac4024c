"""Losses on lists: scores (B, N) of the student against scores of the teacher, the same N items in each row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distillation.knowledge import Batch


def relevance(student: Tensor, labels: Tensor, _batch: Batch) -> Tensor:
    """Give the relevant items the largest scores. Bruch et al. 2019 (softmax cross-entropy): mean over lists.

    The share of an item is its gain, 2^relevance - 1, over the list's; a relevance below 0 leaves an item out.
    """
    absent = labels < 0
    gains = torch.where(absent, 0.0, 2.0 ** labels.to(student.dtype) - 1)
    shares = gains / gains.sum(dim=1, keepdim=True).clamp_min(1e-12)
    likely = F.log_softmax(student.masked_fill(absent, -torch.inf), dim=1).masked_fill(absent, 0.0)
    return -(shares * likely).sum(dim=1).mean()


def listnet(student: Tensor, teacher: Tensor, _batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """Match the probability of being first: cross-entropy, mean over lists. Cao et al. 2007 (ListNet)."""
    given = F.softmax(teacher / temperature, dim=1)
    return -(given * F.log_softmax(student / temperature, dim=1)).sum(dim=1).mean()


def rank_distillation(
    student: Tensor, teacher: Tensor, _batch: Batch, *, top: int = 10, decay: float = 1.0, mu: float = 0.1
) -> Tensor:
    """Raise the teacher's top items. Tang and Wang 2018 (Ranking Distillation).

    Sum over the top of -w log sigmoid(score), mean over lists; w is e^(-rank / decay), normalised, times
    tanh(mu (the student's rank - the teacher's)), not below 0. With mu = 0 the ranks of the student do not count.
    """
    best = teacher.topk(min(top, teacher.shape[1]), dim=1).indices
    ranks = torch.arange(1, best.shape[1] + 1, device=student.device, dtype=student.dtype)
    weights = F.softmax(-ranks / decay, dim=0).expand(best.shape)
    if mu:
        places = student.detach().argsort(dim=1, descending=True).argsort(dim=1) + 1
        weights = weights * torch.tanh(mu * (places.gather(1, best) - ranks)).clamp_min(0)
    return -(weights * F.logsigmoid(student.gather(1, best))).sum(dim=1).mean()


def rrd(student: Tensor, teacher: Tensor, _batch: Batch, *, top: int = 40) -> Tensor:
    """Order the teacher's top items above each other and all others. Kang et al. 2020 (relaxed RRD).

    The negative log-likelihood of a Plackett-Luce model, cut off after the top; mean over lists. All items below the
    top are in every denominator, and none of them is asked to keep an order.
    """
    order = teacher.argsort(dim=1, descending=True)
    scores = student.gather(1, order)
    top = min(top, student.shape[1])
    best, rest = scores[:, :top], scores[:, top:].logsumexp(dim=1, keepdim=True)  # of nothing: -inf
    # From the last to the first: what is still to be chosen from when an item is.
    remaining = torch.cat([rest, best.flip(1)], dim=1).logcumsumexp(dim=1)[:, 1:].flip(1)
    return (remaining - best).sum(dim=1).mean()


def rankdistil(
    student: Tensor, teacher: Tensor, _batch: Batch, *, top: int = 10, press: float = 1.0
) -> Tensor:
    """Keep the order of the teacher's top items, and press the others down. After Reddi et al. 2021 (RankDistil).

    Logistic loss: mean over pairs of the top, plus `press` times the mean over pairs of one of the top and one below. No
    code is public; the paper leaves the surrogate open. What is below is pressed against the top, because a penalty on
    its scores alone is met by lowering all scores.
    """
    order = teacher.argsort(dim=1, descending=True)
    scores = student.gather(1, order)
    best, rest = scores[:, :top], scores[:, top:]
    better, worse = torch.triu_indices(best.shape[1], best.shape[1], 1, device=student.device)
    pairs = F.softplus(best[:, worse] - best[:, better])
    total = pairs.mean() if pairs.numel() else student[:0].sum()
    below = F.softplus(rest[:, None] - best[:, :, None])
    return total + press * below.mean() if below.numel() else total


def score_differences(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Match the differences of scores inside each list: squared, mean over pairs and lists."""
    gap = student - teacher
    return 2 * (gap - gap.mean(dim=1, keepdim=True)).square().mean()
