"""Losses on how samples, or channels, relate: each network against itself, so that widths may differ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distillation.knowledge import Batch
from edgekd.distillation.losses.algebra import squared_distances, unit

_LEAST = 1e-12  # of a probability whose logarithm is taken


def rkd(
    student: Tensor, teacher: Tensor, _batch: Batch, *, distance: float = 25.0, angle: float = 50.0
) -> Tensor:
    """Match distances of pairs and angles of triples. Park et al. 2019 (RKD).

    Huber on distances over their mean, and on cosines; means over all pairs and all triples, as the reference code.
    """
    student, teacher = student.flatten(1), teacher.flatten(1)
    total = student.new_zeros(())
    if distance:
        total = total + distance * F.smooth_l1_loss(_relative(student), _relative(teacher))
    if angle:
        total = total + angle * F.smooth_l1_loss(_cosines(student), _cosines(teacher))
    return total


def sp(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Match which samples look alike. Tung and Mori 2019 (similarity preserving): over B^2."""
    gap = _similarities(student.flatten(1)) - _similarities(teacher.flatten(1))
    return gap.square().mean()


def cc(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Correlate the gaps of neighbours in the batch. Peng et al. 2019, as RepDistiller computes it.

    The paper compares kernel matrices; what its table of results was made with is this.
    """
    gap = (student.flatten(1) - teacher.flatten(1)).abs()
    return (gap[:-1] * gap[1:]).sum(dim=1).mean()


def pkt(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Match the probability that one sample picks another. Passalis and Tefas 2018 (PKT).

    p_ij is (1 + cosine) / 2 over its row's sum; mean over i and j of p_teacher log(p_teacher / p_student).
    """
    given, learnt = _picks(teacher.flatten(1)), _picks(student.flatten(1))
    return (given * (given.log() - learnt.log())).mean()


def cosface(
    student: Tensor, _teacher: Tensor, batch: Batch, *, margin: float = 0.2, scale: float = 16.0
) -> Tensor:
    """Tell classes apart by direction, with a margin. Wang et al. 2018 (CosFace): cross-entropy of scaled cosines.

    Args:
        student: cosines (B, classes) of embeddings with what stands for each class.
        _teacher: is not used.
        batch: its labels; the margin is taken from the cosine of the own class.
        margin: in cosine.
        scale: of the cosines, before the softmax.

    """
    own = F.one_hot(batch.numbers, student.shape[1])
    return F.cross_entropy(scale * (student - margin * own), batch.numbers)


def ickd(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Match which channels of a map go together. Liu et al. 2021 (ICKD): over C^2, mean over the batch."""
    gap = _channels(student) - _channels(teacher)
    return gap.square().mean()


def irg(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Match the edges of the graph of samples. Liu et al. 2019 (instance relationship graph).

    An edge is the squared distance of two samples, over the largest; mean squared error. The graph's vertices are
    the loss `mse`, its transformation from layer to layer is not here.
    """
    return F.mse_loss(_edges(student.flatten(1)), _edges(teacher.flatten(1)))


def _relative(rows: Tensor) -> Tensor:
    pairs = len(rows) * (len(rows) - 1)
    squares = squared_distances(rows)
    apart = squares > 0
    lengths = torch.where(apart, squares, 1.0).sqrt() * apart  # a root has no slope at 0
    return lengths * pairs / lengths.sum()


def _cosines(rows: Tensor) -> Tensor:
    directions = unit(rows[None] - rows[:, None])  # (B, B, D): from each sample to each
    return directions @ directions.mT


def _similarities(rows: Tensor) -> Tensor:
    return unit(rows @ rows.T)


def _picks(rows: Tensor) -> Tensor:
    rows = unit(rows)
    likeness = ((1 + rows @ rows.T) / 2).clamp_min(_LEAST)  # rounding can go below 0
    return likeness / likeness.sum(dim=1, keepdim=True)


def _channels(maps: Tensor) -> Tensor:
    flat = maps.flatten(2)
    return unit(flat @ flat.mT)


def _edges(rows: Tensor) -> Tensor:
    squares = squared_distances(rows)
    return squares / squares.max()
