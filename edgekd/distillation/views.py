"""Augmentation as a pure function of (sample, view, seed), so that teacher and student see the same images.

What a teacher says of a view can be cached, because the view can be made again. Pixels are uint8 (N, H, W, C);
tensors are float32 (B, C, H, W), normalised, in channels_last order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgekd.tasks.classification import ImageClassification


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """How each of N images is changed."""

    number: int
    down: NDArray[np.int64]  # pixels that the image is moved by, (N,); what it leaves is black
    right: NDArray[np.int64]
    mirrored: NDArray[np.bool_]
    partners: NDArray[np.int64]  # the image each is mixed with
    shares: NDArray[np.float32]  # of the image itself in the mixture; 1: not mixed (mixup, Zhang et al. 2018)

    @property
    def mixes(self) -> bool:
        """Whether any image is mixed with another."""
        return bool((self.shares < 1).any())


def view_of(task: ImageClassification, number: int, *, seed: int, mixup: float = 0.0) -> View:
    """Draw one view of the training images.

    Args:
        task: its `crop` and `flip` say what may be done to an image.
        number: of the view.
        seed: views with another seed differ.
        mixup: alpha of the Beta distribution that shares are drawn from; 0: off.

    """
    count = len(task.train)
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
    # One row a sample, whatever is switched on: what happens to a sample depends on nothing but its number.
    draws = rng.random((count, 4))
    padding = round(task.crop * task.side / task.resolution)
    moves = np.floor(draws[:, :2] * (2 * padding + 1)).astype(np.int64) - padding
    shares = rng.beta(mixup, mixup, count).astype(np.float32) if mixup else np.ones(count, np.float32)
    return View(
        number=number,
        down=moves[:, 0],
        right=moves[:, 1],
        mirrored=(draws[:, 2] < 0.5) & task.flip,  # noqa: PLR2004 - half of them
        partners=(draws[:, 3] * count).astype(np.int64),
        shares=shares,
    )


def batch_view(
    task: ImageClassification, indices: NDArray[np.int64], view: View, *, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Make images (B, C, side, side) and labels of a view.

    Returns:
        images, and labels: (B,) numbers, or (B, classes) shares where images are mixed.

    """
    images = _normalised(task, _moved(task.train.images, indices, view), device)
    numbers = torch.from_numpy(task.train.labels[indices]).to(device)
    if not view.mixes:
        return images, numbers
    partners = view.partners[indices]
    others = _normalised(task, _moved(task.train.images, partners, view), device)
    shares = torch.from_numpy(view.shares[indices]).to(device)
    classes = len(task.classes)
    other_numbers = torch.from_numpy(task.train.labels[partners]).to(device)
    labels = torch.lerp(
        F.one_hot(other_numbers, classes).float(), F.one_hot(numbers, classes).float(), shares[:, None]
    )
    return torch.lerp(others, images, shares[:, None, None, None]), labels


def resized(images: Tensor, resolution: int) -> Tensor:
    """Scale images (B, C, H, W) as the runner's pre-processing does, with antialiasing."""
    if images.shape[2:] == (resolution, resolution):
        return images
    return F.interpolate(images, size=(resolution, resolution), mode="bilinear", antialias=True)


def _moved(pixels: NDArray[np.uint8], indices: NDArray[np.int64], view: View) -> NDArray[np.uint8]:
    """Copy images, moved and mirrored; a loop, because each image has a window of its own."""
    side = pixels.shape[1]
    out = np.zeros((len(indices), *pixels.shape[1:]), np.uint8)
    for place, (at, down, right, mirrored) in enumerate(
        zip(indices, view.down[indices], view.right[indices], view.mirrored[indices])
    ):
        window = pixels[at, max(0, -down) : side - max(0, down), max(0, -right) : side - max(0, right)]
        target = out[place, :, ::-1] if mirrored else out[place]
        target[max(0, down) : side + min(0, down), max(0, right) : side + min(0, right)] = window
    return out


def _normalised(task: ImageClassification, pixels: NDArray[np.uint8], device: torch.device | None) -> Tensor:
    scale = torch.tensor([1 / (255 * std) for std in task.std], device=device)
    shift = torch.tensor([-mean / std for mean, std in zip(task.mean, task.std)], device=device)
    images = torch.from_numpy(pixels).to(device, non_blocking=True).to(torch.float32)
    return torch.addcmul(shift, images, scale).permute(0, 3, 1, 2)
