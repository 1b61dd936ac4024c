"""Train the student that a spec names to match its teacher, from the teacher's kept outputs."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from edgekd.distillation.loop import Course, Lesson, train
from edgekd.distillation.losses import knowledge_from
from edgekd.distillation.views import view_of
from edgekd.errors import UsageError
from edgekd.students import build
from edgekd.tasks.classification import ImageClassification
from edgekd.values.checkpoint import Checkpoint, Labels
from edgekd.values.job import DistillationSection
from edgekd.values.student import StudentSpec

log = logging.getLogger(__name__)

VERSION = 1
TOOLS = ("torch",)


def distill(  # noqa: PLR0917 - a stage takes its inputs in order
    folder: Path,
    spec: StudentSpec,
    task: ImageClassification,
    labels: tuple[Labels, ...],
    recipe: DistillationSection,
    epochs: int,
    seed: int,
) -> Checkpoint:
    """Train a student; epoch e sees the view that `labels[e % len(labels)]` was made of.

    Called again with the same folder it goes on after the last full epoch, and ends with the same weights.

    Raises:
        TrainingError: the training diverged.
        ConfigError: a loss is unknown or cannot serve the task.
        IntegrityError: the kept outputs changed.

    """
    log.info("distilling %s for %d epochs", spec, epochs)
    course = Course(
        task=task,
        knowledge=knowledge_from(recipe, classes=len(task.classes)),
        lesson=lambda epoch: lesson_from(labels[epoch % len(labels)], task),
        recipe=recipe,
        resolution=spec.resolution,
        epochs=epochs,
        seed=seed,
    )
    module = build(spec, channels=task.channels, classes=len(task.classes), seed=seed)
    return train(folder, module, course)


def lesson_from(labels: Labels, task: ImageClassification) -> Lesson:
    """Pair a view of the training images with what the teacher said of it.

    Raises:
        UsageError: the outputs are of another data set.

    """
    if labels.samples != len(task.train):
        raise UsageError(
            f"the teacher labelled {labels.samples} images, the task trains on {len(task.train)}",
            mend="label the views again",
        )
    return Lesson(
        view=view_of(task, labels.view, seed=labels.seed, mixup=labels.mixup),
        targets={
            tap: np.load(artifact.verified(), mmap_mode="r", allow_pickle=False)
            for tap, artifact in labels.outputs.items()
        },
    )
