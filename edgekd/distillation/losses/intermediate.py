"""Losses on features inside the networks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.distillation.knowledge import Batch


def pooled_mse(student: Tensor, teacher: Tensor, _batch: Batch) -> Tensor:
    """Compare projected features (B, D) with the teacher's: mean squared error, as timm's feature task."""
    return F.mse_loss(student.float(), teacher.float())


def projector(student_width: int, teacher_width: int) -> nn.Module:
    """Map the student's features to the teacher's width; it is trained with the student and never shipped."""
    return nn.Linear(student_width, teacher_width)
