"""A job small enough to be run whole in seconds, and one run of it that the tests share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekd import pipeline
from edgekd.distillation import loop, teachers
from edgekd.distillation.arithmetic import Arithmetic
from edgekd.tasks import ImageClassification, from_arrays
from edgekd.values.budget import Budget, LatencyBudget
from edgekd.values.job import (
    DistillationSection,
    Job,
    SearchSection,
    TargetSection,
    TaskSection,
    TeacherSection,
)
from edgekd.values.outcome import Outcome

JOB = Job(
    teacher=TeacherSection(model="live"),
    task=TaskSection(data="digits", flip=False, crop=0),
    target=TargetSection(profile="rehearsal"),
    budget=Budget(latency_ms=LatencyBudget(speedup=4.0), max_accuracy_drop=0.95),
    search=SearchSection(trials=2, finalists=1, probes=4, families=("residual",)),
    distillation=DistillationSection(epochs=2, short_epochs=1, views=1, batch=32, optimizer="adamw"),
)


def teacher() -> nn.Module:
    """Return a wide and shallow network with weights of its own: slow on the target, quick to export."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers: list[nn.Module] = [nn.Conv2d(1, 96, 3, padding=1), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(96, 96, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


def digits(count: int = 200) -> ImageClassification:
    """Return the first handwritten digits of scikit-learn's."""
    from sklearn.datasets import load_digits

    held = load_digits()
    images = np.rint(held.images[:count] * (255 / 16)).astype(np.uint8)
    return from_arrays(images, held.target[:count], section=JOB.task)


def with_(job: Job, **sections: dict[str, object]) -> Job:
    """Return the job with other values in its sections."""
    changed = {
        name: dataclasses.replace(getattr(job, name), **values) for name, values in sections.items()
    }
    return dataclasses.replace(job, **changed)
