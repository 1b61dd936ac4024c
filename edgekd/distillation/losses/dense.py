"""Losses on maps of answers: segmentation (B, C, H, W), and the heads of detectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distillation.knowledge import Batch
from edgekd.distillation.losses.algebra import softened_kl

UNKNOWN = 255  # in a mask: nothing is said of this pixel


def cwd(student: Tensor, teacher: Tensor, _batch: Batch, *, temperature: float = 4.0) -> Tensor:
    """Match where each channel looks: a softmax over the pixels. Shu et al. 2021 (channel-wise KD).

    T^2 KL, summed over pixels, mean over batch and channels; blind to a constant added to a channel.
    """
    return softened_kl(student.flatten(2), teacher.flatten(2), temperature)


def pixels(student: Tensor, teacher: Tensor, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """Match the classes of each pixel: T^2 KL, mean over the pixels that count (B, H, W)."""
    learnt = F.log_softmax(student / temperature, dim=1)
    given = F.log_softmax(teacher / temperature, dim=1)
    return _mean((given.exp() * (given - learnt)).sum(dim=1), batch) * temperature**2


def masks(student: Tensor, labels: Tensor, _batch: Batch) -> Tensor:
    """Learn the classes of pixels from the truth: cross-entropy and soft Dice of the enlarged maps (nnU-Net's pair).

    The cross-entropy is a mean over the pixels that have a class; where most of them are ground, it alone teaches to
    say ground everywhere. Dice (Milletari et al. 2016) weighs the classes that are in the batch alike.

    Args:
        student: (B, C, g, g), enlarged between its pixels as the runner does.
        labels: (B, H, W) classes; 255 where nothing is said.

    """
    maps = F.interpolate(student, labels.shape[1:], mode="bilinear", align_corners=False)
    known = labels != UNKNOWN
    losses = F.cross_entropy(maps, labels.long(), ignore_index=UNKNOWN, reduction="sum")
    given = maps.softmax(dim=1) * known[:, None]
    truth = F.one_hot(labels.long() * known, maps.shape[1]).movedim(-1, 1) * known[:, None]
    shared, both = ((one).sum(dim=(0, 2, 3)) for one in (given * truth, given + truth))
    there = truth.sum(dim=(0, 2, 3)) > 0
    dice = torch.where(there, 2 * shared / both.clamp_min(1e-6), 0).sum() / there.sum().clamp_min(1)
    return losses / known.sum().clamp_min(1) + 1 - dice


def noised_labels(labels: Tensor, classes: int, *, share: float, generator: torch.Generator) -> Tensor:
    """Make what a label-assisted teacher sees beside the image: one-hot labels (B, C, H, W), a share of them wrong.

    The teacher takes them as further channels, and the student, without them, learns `pixels` from it. Noise keeps the
    teacher from copying its answer (label-assisted distillation, 2024).
    """
    random = torch.randint(classes, labels.shape, generator=generator).to(labels.device)
    wrong = (torch.rand(labels.shape, generator=generator) < share).to(labels.device)
    return F.one_hot(torch.where(wrong, random, labels), classes).movedim(-1, 1).float()


def ld(student: Tensor, teacher: Tensor, batch: Batch, *, temperature: float = 10.0) -> Tensor:
    """Match where each edge of a box may lie. Zheng et al. 2022 (localisation distillation).

    For logits (B, 4, bins); T^2 KL with the mean over bins, as the reference code: its weight of 0.25 is for this.
    """
    learnt = F.log_softmax(student / temperature, dim=-1)
    given = F.log_softmax(teacher / temperature, dim=-1)
    return _mean((given.exp() * (given - learnt)).mean(dim=-1), batch) * temperature**2


def crosskd_classes(student: Tensor, teacher: Tensor, batch: Batch, *, beta: float = 1.0) -> Tensor:
    """Match the teacher's class scores where its head read the student's features. Wang et al. 2024 (CrossKD).

    For logits (B, C): quality focal loss |p_teacher - p_student|^beta times binary cross-entropy, summed over classes.
    """
    given = teacher.sigmoid()
    focus = (given - student.sigmoid()).abs().pow(beta)
    loss = F.binary_cross_entropy_with_logits(student, given, reduction="none") * focus
    return _mean(loss.sum(dim=1), batch)


def crosskd_boxes(student: Tensor, teacher: Tensor, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """Match the teacher's edges of boxes where its head read the student's features. Wang et al. 2024 (CrossKD).

    For logits (B, 4, bins): T^2 KL summed over bins.
    """
    learnt = F.log_softmax(student / temperature, dim=-1)
    given = F.log_softmax(teacher / temperature, dim=-1)
    return _mean((given.exp() * (given - learnt)).sum(dim=-1), batch) * temperature**2


def _mean(losses: Tensor, batch: Batch) -> Tensor:
    """Average what counts; `batch.valid` (B,) may leave out boxes with all their edges."""
    if batch.valid is None:
        return losses.mean()
    valid = batch.valid.reshape(*batch.valid.shape, *[1] * (losses.ndim - batch.valid.ndim)).expand_as(losses)
    return (losses * valid).sum() / valid.sum().clamp_min(1)
