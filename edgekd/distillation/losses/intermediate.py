"""Losses on features inside the networks: maps (B, C, H, W), or vectors (B, D)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edgekd.distillation.knowledge import Batch
from edgekd.distillation.losses.algebra import unit

_LEVELS = (4, 2, 1)  # sides of ReviewKD's pyramid, below the full one
_LEAST = 1e-12  # keeps a logarithm finite where the features are equal


def features(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Match features that an adapter mapped: mean squared error. Romero et al. 2015 (FitNets), eq. 3."""
    return F.mse_loss(student, teacher)


def directions(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Match features scaled to length 1: squared distance, mean over the batch. Li and Bilen 2020."""
    gap = unit(student.flatten(1)) - unit(teacher.flatten(1))
    return gap.square().sum(dim=1).mean()


def at(student: Tensor, teacher: Tensor, _batch: Batch, *, power: int = 2) -> Tensor:
    """Match where the channels are active. Zagoruyko and Komodakis 2017 (attention transfer), eq. 2.

    Mean over channels of the features to a power, scaled to length 1; mean squared error. Widths may differ; the
    larger map is pooled to the smaller.
    """
    side = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    gap = _attention(student, side, power) - _attention(teacher, side, power)
    return gap.square().mean()


def reviewkd(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Match a map at full size and pooled to 4, 2 and 1. Chen et al. 2021 (ReviewKD), hierarchical context loss."""
    total, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for side in _LEVELS:
        if side < student.shape[2]:
            weight /= 2
            weights += weight
            pooled = F.adaptive_avg_pool2d(student, side), F.adaptive_avg_pool2d(teacher, side)
            total = total + weight * F.mse_loss(*pooled)
    return total / weights


def mgd(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Match maps generated from masked ones: squared error, summed, over the batch. Yang et al. 2022 (MGD)."""
    return F.mse_loss(student, teacher, reduction="sum") / len(student)


def srd(student: Tensor, teacher: Tensor, _batch: Batch, *, power: int = 4) -> Tensor:
    """Match standardised features: log of the summed gap to a power. Miles and Mikolajczyk 2024."""
    return ((student - teacher).abs().pow(power).sum() + _LEAST).log()


def _attention(maps: Tensor, side: tuple[int, int], power: int) -> Tensor:
    if maps.shape[2:] != side:
        maps = F.adaptive_avg_pool2d(maps, side)
    return unit(maps.pow(power).mean(dim=1).flatten(1))
