"""What several losses are made of. Small numbers stand inside roots, so that dead rows have a gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8  # of a norm or a deviation that may be 0


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) of logits (..., C): summed over classes, mean over all else.

    Soft targets scale gradients by 1/T^2; the factor undoes it, so that a weight means the same at any temperature.
    """
    learnt = F.log_softmax(student / temperature, dim=-1).flatten(0, -2)
    given = F.log_softmax(teacher / temperature, dim=-1).flatten(0, -2)
    return F.kl_div(learnt, given, reduction="batchmean", log_target=True) * temperature**2


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Correlate the rows of two matrices: (R, K), (R, K) -> (R,); a constant row correlates with nothing."""
    first = first - first.mean(dim=1, keepdim=True)
    second = second - second.mean(dim=1, keepdim=True)
    power = first.square().sum(dim=1) * second.square().sum(dim=1)
    return (first * second).sum(dim=1) * torch.rsqrt(power + EPSILON**2)


def unit(rows: Tensor, dim: int = -1) -> Tensor:
    """Scale to length 1; a zero stays zero."""
    return rows * torch.rsqrt(rows.square().sum(dim=dim, keepdim=True) + EPSILON**2)


def squared_distances(rows: Tensor) -> Tensor:
    """Return the squared distances (B, B) of rows (B, D), the diagonal exactly 0."""
    centred = rows - rows.mean(dim=0)  # changes no distance, and spares digits where all rows are far from 0
    power = centred.square().sum(dim=1)
    squares = (power[:, None] + power - 2 * centred @ centred.T).clamp_min(EPSILON**2)
    return squares * (1 - torch.eye(len(rows), dtype=rows.dtype, device=rows.device))
