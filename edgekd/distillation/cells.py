"""Take a detector's maps apart, so that losses on rows see the cells that matter; nothing here learns.

What the teacher says was kept before the training, of its own features: CrossKD's loss then compares the two networks'
answers. The published method lets the teacher's head read the student's features in every step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekd.distillation.knowledge import Batch, Shapes, Tensors
from edgekd.errors import ConfigError
from edgekd.runner.boxes import BINS

_SHARE = 16  # one cell in so many is compared: nearly all the others are ground to both


class Classes(nn.Module):
    """Give the class logits (rows, classes) of the cells where either network sees something most."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        _refuse_other(shapes)

    def forward(self, students: Tensors, teachers: Tensors, _batch: Batch) -> tuple[Tensors, Tensors]:
        """Take the classes of the most promising cells."""
        learnt, given = split_maps(students[0])[0], split_maps(teachers[0])[0]
        chosen = _best(learnt.detach().amax(dim=2).maximum(given.amax(dim=2)))
        return (_rows(learnt, chosen),), (_rows(given, chosen),)


class Edges(nn.Module):
    """Give the edges (rows, 4, BINS) of the cells where the teacher sees something most."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        _refuse_other(shapes)

    def forward(self, students: Tensors, teachers: Tensors, _batch: Batch) -> tuple[Tensors, Tensors]:
        """Take the edges of the most promising cells."""
        classes, given = split_maps(teachers[0])
        chosen = _best(classes.amax(dim=2))
        learnt = split_maps(students[0])[1]
        return (_rows(learnt, chosen),), (_rows(given, chosen),)


def split_maps(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits of classes (B, G, classes) and of edges (B, G, 4, BINS) from maps (B, classes + 4 * BINS, g, g)."""
    rows = maps.flatten(2).transpose(1, 2)
    classes = rows.shape[2] - 4 * BINS
    return rows[:, :, :classes], rows[:, :, classes:].reshape(*rows.shape[:2], 4, BINS)


def _best(scores: Tensor) -> Tensor:
    """Return the numbers of the best cells (B, k) by scores (B, G)."""
    return scores.topk(max(1, scores.shape[1] // _SHARE), dim=1).indices


def _rows(values: Tensor, chosen: Tensor) -> Tensor:
    """Return (B * k, ...) of values (B, G, ...)."""
    images = torch.arange(len(values), device=values.device)[:, None]
    return values[images, chosen].flatten(0, 1)


def _refuse_other(shapes: Shapes) -> None:
    if len(shapes.student) != 1 or shapes.student != shapes.teacher or len(shapes.student[0]) != 3:  # noqa: PLR2004
        raise ConfigError(
            f"the loss `{shapes.name}` compares a detector's maps of one shape",
            cause=f"the student gives {[tuple(one) for one in shapes.student]}, "
            f"the teacher {[tuple(one) for one in shapes.teacher]}",
            mend="leave its taps out",
        )
