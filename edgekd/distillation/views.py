"""Augmentation as a pure function of (sample, view, seed), so that teacher and student see the same samples.

What a teacher says of a view can be cached, because the view can be made again. Images, uint8 (N, H, W, C), are moved
and mirrored, and with them the labels that lie in them; sound, int16 (N, L), is moved; everything else stays as it
is. Images become float32 (B, C, H, W), normalised, in channels_last order;
everything else goes through the task's own `prepare`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgekd.errors import ConfigError
from edgekd.tasks.task import Placed, Task
from edgekd.values.job import CLASSIFYING
from edgekd.values.preprocess import Preprocess

_IMAGES, _SOUND = 4, 2  # axes


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """How each of N samples is changed."""

    number: int
    down: NDArray[np.int64]  # pixels that an image is moved by, (N,); what it leaves is black
    right: NDArray[np.int64]  # likewise; of sound, samples that it comes later by, and silence before
    mirrored: NDArray[np.bool_]
    partners: NDArray[np.int64]  # the sample each is mixed with
    shares: NDArray[
        np.float32
    ]  # of the sample itself in the mixture; 1: not mixed (mixup, Zhang et al. 2018)

    @property
    def mixes(self) -> bool:
        """Whether any sample is mixed with another."""
        return bool((self.shares < 1).any())


def view_of(task: Task, number: int, *, seed: int, mixup: float = 0.0) -> View:
    """Draw one view of the training samples.

    Args:
        task: its `crop` and `flip` say what may be done to a sample.
        number: of the view.
        seed: views with another seed differ.
        mixup: alpha of the Beta distribution that shares are drawn from; 0: off.

    Raises:
        ConfigError: samples are to be mixed whose labels are no classes.

    """
    if mixup:
        _refuse_unmixable(task)
    count = len(task.train)
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
    # One row a sample, whatever is switched on: what happens to a sample depends on nothing but its number.
    draws = rng.random((count, 4))
    padding = _padding(task)
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
    task: Task,
    indices: NDArray[np.int64],
    view: View,
    resolution: int,
    *,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Make what a network of a resolution takes of a view, and the labels.

    Returns:
        inputs (B, ...), images (B, C, resolution, resolution) among them, and labels: as the task keeps them, or
        (B, classes) shares where samples are mixed.

    """
    inputs = _prepared(task, indices, view, resolution, device)
    labels = torch.from_numpy(_placed(task, indices, view)).to(device)
    if not view.mixes:
        return _sized(task, inputs, resolution), labels
    partners = view.partners[indices]
    others = _prepared(task, partners, view, resolution, device)
    shares = torch.from_numpy(view.shares[indices]).to(device)
    classes = len(task.classes)
    other_labels = torch.from_numpy(np.asarray(task.train.labels[partners])).to(device)
    mixed = torch.lerp(
        F.one_hot(other_labels, classes).float(), F.one_hot(labels, classes).float(), shares[:, None]
    )
    inputs = torch.lerp(others, inputs, shares.reshape(-1, *(1,) * (inputs.ndim - 1)))
    return _sized(task, inputs, resolution), mixed


def resized(images: Tensor, resolution: int) -> Tensor:
    """Scale images (B, C, H, W) as the runner's pre-processing does, with antialiasing."""
    if images.shape[2:] == (resolution, resolution):
        return images
    return F.interpolate(images, size=(resolution, resolution), mode="bilinear", antialias=True)


def _refuse_unmixable(task: Task) -> None:
    if task.kind not in CLASSIFYING:
        raise ConfigError(
            f"samples of {task.kind} cannot be mixed",
            cause="[distillation] mixup is above 0, and labels of this task have no mixture",
            mend="leave [distillation] mixup out",
        )


def _images(task: Task) -> bool:
    samples = task.train.samples
    return samples.dtype == np.uint8 and samples.ndim == _IMAGES


def _padding(task: Task) -> int:
    """Return how far a sample may be moved, in its own pixels or samples of sound."""
    samples = task.train.samples
    if _images(task):
        return round(task.crop * int(samples.shape[1]) / task.resolution)
    return task.crop if samples.dtype == np.int16 and samples.ndim == _SOUND else 0


def _prepared(
    task: Task, indices: NDArray[np.int64], view: View, resolution: int, device: torch.device | None
) -> Tensor:
    """Return inputs; images still of the side that they are kept in, because they are mixed before they are scaled."""
    samples = task.train.samples
    if _images(task):
        return _normalised(task, _moved(samples, indices, view), device)
    rows = _delayed(samples, indices, view) if _padding(task) else samples[indices]
    return torch.from_numpy(task.prepare(rows, resolution)).to(device)


def _placed(task: Task, indices: NDArray[np.int64], view: View) -> NDArray[Any]:
    """Return labels, moved with their images where they lie in them."""
    labels = np.asarray(task.train.labels[indices])
    if not isinstance(task, Placed):
        return labels
    return task.moved(labels, view.down[indices], view.right[indices], view.mirrored[indices])


def _sized(task: Task, inputs: Tensor, resolution: int) -> Tensor:
    return resized(inputs, resolution) if _images(task) else inputs


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


def _delayed(sound: NDArray[Any], indices: NDArray[np.int64], view: View) -> NDArray[Any]:
    """Copy sound (B, L), each clip moved by its own number of samples."""
    length = sound.shape[1]
    out = np.zeros((len(indices), length), sound.dtype)
    for place, (at, right) in enumerate(zip(indices, view.right[indices])):
        out[place, max(0, right) : length + min(0, right)] = sound[
            at, max(0, -right) : length - max(0, right)
        ]
    return out


def _normalised(task: Task, pixels: NDArray[np.uint8], device: torch.device | None) -> Tensor:
    recipe = task.preprocess(task.resolution)
    assert isinstance(recipe, Preprocess)  # noqa: S101 - what makes inputs of images
    scale = torch.tensor([1 / (255 * std) for std in recipe.std], device=device)
    shift = torch.tensor([-mean / std for mean, std in zip(recipe.mean, recipe.std)], device=device)
    images = torch.from_numpy(pixels).to(device, non_blocking=True).to(torch.float32)
    return torch.addcmul(shift, images, scale).permute(0, 3, 1, 2)
