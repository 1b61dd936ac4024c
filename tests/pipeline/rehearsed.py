"""A job small enough to be run whole in seconds on the rehearsal profile, and workers without processes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.distillation.arithmetic import Arithmetic
from edgekd.quantizers import __main__ as quantizers
from edgekd.tasks import ImageClassification, from_arrays
from edgekd.values.budget import Budget, LatencyBudget, Limits
from edgekd.values.job import (
    DistillationSection,
    Job,
    SearchSection,
    TargetSection,
    TaskSection,
    TeacherSection,
)
from edgekd.values.latency import Protocol
from edgekd.worker.orders import Worker

__all__ = [
    "JOB",
    "LatencyBudget",
    "Limits",
    "digits",
    "float_profile",
    "stay_in_this_process",
    "teacher",
    "with_",
]

JOB = Job(
    teacher=TeacherSection(model="live"),
    task=TaskSection(data="digits", flip=False, crop=0),
    target=TargetSection(profile="rehearsal"),
    budget=Budget(
        latency_ms=LatencyBudget(speedup=4.0),
        max_accuracy_drop=0.95,
        memory_mb=4000.0,
        sustained_minutes=1.0,
        period_ms=1000.0,
    ),
    search=SearchSection(trials=2, finalists=1, probes=4, families=("residual",)),
    distillation=DistillationSection(
        epochs=4, short_epochs=2, views=2, batch=32, optimizer="adamw", learning_rate=0.01, ema=0.0
    ),
)

FLOAT_PROFILE = """
name = "rehearsal in fp32"
description = "For tests that need no quantiser"
[runtimes]
rehearsal = ["fp32"]
"""


def with_(job: Job, **sections: dict[str, Any]) -> Job:
    """Return the job with other values in its sections."""
    changed = {name: dataclasses.replace(getattr(job, name), **values) for name, values in sections.items()}
    return dataclasses.replace(job, **changed)


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


class WorkerHere:
    """A worker in this process: the same orders, no wire and no start-up."""

    def __init__(
        self, module: str, *, memory_mib: int = 0, threads: int | None = None, runtime: str = ""
    ) -> None:
        self._handlers = {"edgekd.worker": Worker().handlers()}.get(module)

    def ask(self, name: str, order: Any, reply: type, *, timeout_s: float) -> Any:
        if self._handlers:
            return self._handlers[name].carry_out(order)
        return getattr(quantizers, name)(order)

    def close(self) -> None:
        """Nothing to end."""

    def __enter__(self) -> WorkerHere:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""


def stay_in_this_process(patch: pytest.MonkeyPatch) -> None:
    """Let devices and quantisers work here, a final measurement be one launch, and arithmetic be plain."""
    patch.setattr("edgekd.devices.local.Child", WorkerHere)
    patch.setattr("edgekd.stages.quantize.Child", WorkerHere)
    # Which arithmetic is fastest is a measurement; what is learnt in bf16 differs from fp32 in its last digits.
    for module in ("loop", "teachers"):
        patch.setattr(f"edgekd.distillation.{module}.choose_arithmetic", lambda *_, **__: Arithmetic())
    # A smaller choice of students is as good a rehearsal.
    for module in ("stages.propose", "pipeline.planning"):
        patch.setattr(f"edgekd.{module}._POOL", 200)
    patch.setattr("edgekd.stages.propose._CLIMBS", 1)
    short = Protocol(launches=1, blocks=4, samples=80)
    for module in ("loop", "trials", "delivery", "drawing"):
        patch.setattr(f"edgekd.pipeline.{module}.FULL", short)


def float_profile(folder: Path) -> str:
    """Write a profile without int8 and return its path, for `[target] profile`."""
    path = folder / "float.toml"
    path.write_text(FLOAT_PROFILE, encoding="utf-8")
    return str(path)
