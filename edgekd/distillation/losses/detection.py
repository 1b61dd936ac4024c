"""What a detector of one level learns from true boxes; its maps are those of `runner.boxes.decode_boxes`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distillation.cells import split_maps
from edgekd.distillation.knowledge import Batch
from edgekd.runner.boxes import BINS, REACH

_NEAR = 1.5  # cells around a box's middle that are to find it (centre sampling, FCOS v3)
_GIOU, _DFL = 2.0, 0.25  # weights of the reference code


class Cells(NamedTuple):
    """What each of G = g * g cells is to say."""

    classes: Tensor  # (B, G) int64; -1: nothing is there
    corners: Tensor  # (B, G, 4): of its box, in shares of the image's sides


def boxes(student: Tensor, labels: Tensor, _batch: Batch) -> Tensor:
    """Learn classes and boxes from the truth: generalised focal loss, Li et al. 2020.

    The score of a cell is to be how well its box fits (quality focal loss, beta 2, eq. 6); boxes learn by GIoU
    (Rezatofighi et al. 2019) and their edges as distributions (eq. 7), each cell weighted by its score.

    Args:
        student: (B, classes + 4 * BINS, g, g).
        labels: (B, M, 6): class or -1, left, top, right, bottom in shares of the sides, difficult.

    """
    classes, edges = split_maps(student)
    cells = assigned(labels.to(classes.dtype), student.shape[-1])
    there = cells.classes >= 0
    found = _corners(edges[there], _middles(cells)[there])
    fit = _giou(found, cells.corners[there])
    target = torch.zeros_like(classes)
    target[there, cells.classes[there]] = fit.iou.detach()
    count = there.sum().clamp_min(1)
    scores = classes.sigmoid()
    missed = F.binary_cross_entropy_with_logits(classes, target, reduction="none")
    quality = (missed * (target - scores).square()).sum() / count
    weights = scores.detach().amax(dim=2)[there]
    places = _places(cells.corners[there], _middles(cells)[there])
    edge = _between_bins(edges[there], places)
    located = (weights * (_GIOU * (1 - fit.giou) + _DFL * edge)).sum() / weights.sum().clamp_min(1e-6)
    return quality + located


@torch.no_grad()
def assigned(labels: Tensor, side: int) -> Cells:
    """Give each cell the smallest box in whose middle it lies; a box has its own cell at least.

    Difficult boxes are nobody's.

    Args:
        labels: (B, M, 6).
        side: g.

    """
    corners = labels[:, None, :, 1:5]  # (B, 1, M, 4)
    middle = (corners[..., :2] + corners[..., 2:]) / 2
    at = _grid(side, labels)[None, :, None]  # (1, G, 1, 2)
    inside = ((at > corners[..., :2]) & (at < corners[..., 2:])).all(dim=3)
    near = ((at - middle).abs() < _NEAR / side).all(dim=3)
    home = ((middle * side).floor().clamp(0, side - 1) == (at * side).floor()).all(dim=3)
    real = (labels[:, None, :, 0] >= 0) & (labels[:, None, :, 5] == 0)
    area = (corners[..., 2:] - corners[..., :2]).prod(dim=3)
    area = area.expand_as(near).masked_fill(~(real & (inside & near | home)), torch.inf)
    smallest, chosen = area.min(dim=2)
    of_cell = labels.gather(1, chosen[:, :, None].expand(-1, -1, labels.shape[2]))
    classes = torch.where(smallest.isfinite(), of_cell[:, :, 0], -1.0)
    return Cells(classes=classes.long(), corners=of_cell[:, :, 1:5])


class _Fit(NamedTuple):
    iou: Tensor
    giou: Tensor


def _giou(first: Tensor, second: Tensor) -> _Fit:
    """Compare boxes (P, 4) one to one: intersection over union, less the share of their hull that is neither."""
    shared = _area(torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:]))
    whole = _area(first[:, :2], first[:, 2:]) + _area(second[:, :2], second[:, 2:]) - shared
    hull = _area(torch.minimum(first[:, :2], second[:, :2]), torch.maximum(first[:, 2:], second[:, 2:]))
    iou = shared / whole.clamp_min(1e-9)
    return _Fit(iou=iou, giou=iou - (hull - whole) / hull.clamp_min(1e-9))


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp_min(0).prod(dim=1)


def _corners(edges: Tensor, middles: Tensor) -> Tensor:
    """Return boxes (P, 4) from logits (P, 4, BINS): the means of their distributions."""
    steps = REACH * torch.linspace(0, 1, BINS, device=edges.device, dtype=edges.dtype) ** 2
    distances = (edges.softmax(dim=2) * steps).sum(dim=2)
    return torch.cat([middles - distances[:, :2], middles + distances[:, 2:]], dim=1)


def _places(corners: Tensor, middles: Tensor) -> Tensor:
    """Return where among the bins the true edges lie, (P, 4), from 0 to BINS - 1."""
    distances = torch.cat([middles - corners[:, :2], corners[:, 2:] - middles], dim=1)
    return (distances.clamp(0, REACH) / REACH).sqrt() * (BINS - 1)


def _between_bins(edges: Tensor, places: Tensor) -> Tensor:
    """Return the distribution focal loss of (P, 4, BINS), its mean over the edges: (P,)."""
    below = places.floor().clamp(0, BINS - 2)
    share = places - below
    logs = edges.log_softmax(dim=2)
    lower, upper = (logs.gather(2, (below.long() + step)[:, :, None])[:, :, 0] for step in (0, 1))
    return -((1 - share) * lower + share * upper).mean(dim=1)


def _middles(cells: Cells) -> Tensor:
    side = round(cells.classes.shape[1] ** 0.5)
    return _grid(side, cells.corners)[None].expand(len(cells.corners), -1, -1)


def _grid(side: int, like: Tensor) -> Tensor:
    """Return the middles of cells, (G, 2): across and down, row by row."""
    steps = (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / side
    return torch.stack([steps.repeat(side), steps.repeat_interleave(side)], dim=1)
