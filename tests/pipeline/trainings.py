"""Training orders for the tests of those who train elsewhere, and what such a training amounts to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekd import tasks
from edgekd.distillation import loop
from edgekd.distillation.state import saved_progress
from edgekd.pipeline.elsewhere import STATE
from edgekd.stages.distill import distill
from edgekd.tasks.task import Task
from edgekd.values.artifact import Artifact
from edgekd.values.checkpoint import Checkpoint, Labels
from edgekd.values.job import DistillationSection, TaskSection
from edgekd.values.student import StageSpec, StudentSpec
from edgekd.values.training import TrainingOrder

SECTION = TaskSection(data="digits", flip=False, crop=1)
RECIPE = DistillationSection(
    losses={"ce": 1.0, "kd": 1.0}, epochs=1, short_epochs=1, views=1, batch=128, learning_rate=0.02
)


def spec(width: int) -> StudentSpec:
    stages = (StageSpec(width=width, depth=1, kernel=3, expansion=1.0),)
    return StudentSpec(family="residual", resolution=8, stem=8, stages=stages)


def task(cache: Path) -> Task:
    return tasks.load(SECTION, beside=Path(), cache=cache, seed=0)


def labels(folder: Path, held: Task, views: int = 2) -> tuple[Labels, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for view in range(views):
        path = folder / f"logits-{view}.npy"
        rng = np.random.default_rng(view)
        np.save(path, rng.normal(size=(len(held.train), 10)).astype(np.float16))
        found.append(
            Labels(
                outputs={"logits": Artifact.of(path)}, view=view, seed=0, mixup=0.0, samples=len(held.train)
            )
        )
    return tuple(found)


def order(folder: Path, held: Task, *, width: int, epochs: int) -> TrainingOrder:
    return TrainingOrder(
        spec=spec(width),
        task=held.fingerprint,
        labels=labels(folder / "labels", held),
        recipe=RECIPE,
        epochs=epochs,
        seed=0,
        folder=str(folder / f"student-{width}"),
    )


def completed(given: TrainingOrder, held: Task) -> Checkpoint:
    """Return what a training here makes of the state that an order's folder holds; no epoch may be left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", None)
        return distill(
            Path(given.folder), given.spec, held, given.labels, given.recipe, given.epochs, given.seed
        )


def alone(given: TrainingOrder, held: Task, folder: Path) -> Checkpoint:
    """Train the same here, in the arithmetic that the other training measured as fastest."""
    done = saved_progress(Path(given.folder) / STATE)
    assert done is not None
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "choose_arithmetic", lambda *_, **__: done.arithmetic)
        return distill(folder, given.spec, held, given.labels, given.recipe, given.epochs, given.seed)
