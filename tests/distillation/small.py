"""A small real task and small networks, for every test that trains."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekd import tasks
from edgekd.tasks import ImageClassification
from edgekd.values.job import DistillationSection, TaskSection
from edgekd.values.student import StageSpec, StudentSpec

SPEC = StudentSpec(
    family="residual", resolution=8, stem=8, stages=(StageSpec(width=8, depth=1, kernel=3, expansion=1.0),)
)
RECIPE = DistillationSection(batch=32, learning_rate=0.05)


@cache
def digits() -> ImageClassification:
    """Every third digit: about 430 training images, in the split of the whole."""
    whole = tasks.load(TaskSection(data="digits", flip=False, crop=1), beside=Path(), cache=Path())
    return dataclasses.replace(whole, train=whole.train.spread(430), validation=whole.validation.spread(80))


def recipe(**changes: object) -> DistillationSection:
    return dataclasses.replace(RECIPE, **changes)


class Net(nn.Module):
    """A convolution, a norm, dropout, pooled features and a classifier."""

    def __init__(self, width: int = 8, classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width * 4, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.adaptive_avg_pool2d(self.body(images), 2).flatten(1)
        return self.head(self.drop(features))


def net(width: int = 8, classes: int = 10, dropout: float = 0.0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net(width, classes, dropout)
