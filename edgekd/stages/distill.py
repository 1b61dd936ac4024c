"""Train the student that a spec names to match its teacher, from the teacher's kept outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgekd.distillation import schemes
from edgekd.distillation.fitting import knowledge_for
from edgekd.distillation.loop import Course, Lesson
from edgekd.distillation.parallel import ALONE, Crew, summoned
from edgekd.distillation.state import Progress
from edgekd.distillation.views import View, view_of
from edgekd.errors import UsageError
from edgekd.students import build
from edgekd.tasks.task import Task
from edgekd.values.checkpoint import Checkpoint, Labels
from edgekd.values.codec import encode
from edgekd.values.job import DistillationSection
from edgekd.values.student import StudentSpec
from edgekd.values.training import TrainingOrder

log = logging.getLogger(__name__)

VERSION = 1
TOOLS = ("torch",)


def distill(  # noqa: PLR0917 - a stage takes its inputs in order
    folder: Path,
    spec: StudentSpec,
    task: Task,
    labels: tuple[Labels, ...],
    recipe: DistillationSection,
    epochs: int,
    seed: int,
) -> Checkpoint:
    """Train a student by the recipe's scheme; epoch e sees the view that `labels[e % len(labels)]` was made of.

    Called again with the same folder it goes on after the last full epoch, and ends with the same weights. Where
    other processes have met this one, they take part.

    Raises:
        TrainingError: the training diverged.
        ConfigError: a loss is unknown or cannot serve the task.
        IntegrityError: the kept outputs changed.

    """
    log.info("distilling %s for %d epochs", spec, epochs)
    order = TrainingOrder(
        spec=spec,
        task=task.fingerprint,
        labels=labels,
        recipe=recipe,
        epochs=epochs,
        seed=seed,
        folder=str(folder.resolve()),
    )
    crew = summoned(encode(order))
    return schemes.learn(folder, _maker(order, task), course_of(order, task, crew))


def take_part(order: TrainingOrder, task: Task, crew: Crew) -> None:
    """Train with the process that gave the order; it writes the weights.

    Raises:
        TrainingError: the training diverged.
        UsageError: the order's folder is not here.

    """
    schemes.take_part(Path(order.folder), _maker(order, task), course_of(order, task, crew))


def distill_an_epoch(
    folder: Path, order: TrainingOrder, task: Task, targets: Mapping[int, Mapping[str, NDArray[np.float16]]]
) -> Progress:
    """Train one more epoch of what `distill` would, from the state in the folder to the state in the folder.

    Args:
        folder: holds nothing, or the state of the epochs before.
        order: what to train.
        task: the samples.
        targets: what the teacher said, by number of the order's labels: of the first, and of those of this epoch.

    Raises:
        TrainingError: the training diverged.

    """

    def lesson(epoch: int) -> Lesson:
        at = epoch % len(order.labels)
        return Lesson(view=_view(order.labels[at], task), targets=targets[at])

    return schemes.learn_an_epoch(folder, _maker(order, task), replace(course_of(order, task), lesson=lesson))


def course_of(order: TrainingOrder, task: Task, crew: Crew = ALONE) -> Course:
    """Return what an order asks to be learnt.

    Raises:
        ConfigError: a loss is unknown or cannot serve the task.

    """
    labels = order.labels
    return Course(
        task=task,
        knowledge=knowledge_for(order.recipe, task),
        lesson=lambda epoch: lesson_from(labels[epoch % len(labels)], task),
        recipe=order.recipe,
        resolution=order.spec.resolution,
        epochs=order.epochs,
        seed=order.seed,
        crew=crew,
    )


def _view(labels: Labels, task: Task) -> View:
    return view_of(task, labels.view, seed=labels.seed, mixup=labels.mixup)


def _maker(order: TrainingOrder, task: Task) -> Callable[[int], nn.Module]:
    return lambda seed: build(order.spec, channels=task.channels, classes=task.outputs, seed=seed)


def lesson_from(labels: Labels, task: Task) -> Lesson:
    """Pair a view of the training samples with what the teacher said of it.

    Raises:
        UsageError: the outputs are of another data set.

    """
    if labels.samples != len(task.train):
        raise UsageError(
            f"the teacher labelled {labels.samples} samples, the task trains on {len(task.train)}",
            mend="label the views again",
        )
    return Lesson(
        view=_view(labels, task),
        targets={
            tap: np.load(artifact.verified(), mmap_mode="r", allow_pickle=False)
            for tap, artifact in labels.outputs.items()
        },
    )
