"""Train the teacher, from scratch or from its given weights, before it teaches."""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path

from edgekd.distillation.fitting import knowledge_for
from edgekd.distillation.loop import Course, Lesson, train
from edgekd.distillation.teachers import Teacher
from edgekd.distillation.views import view_of
from edgekd.tasks.task import Task
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.job import DistillationSection, TeacherSection

log = logging.getLogger(__name__)

VERSION = 1
TOOLS = ("torch",)


def teach(  # noqa: PLR0917 - a stage takes its inputs in order
    folder: Path,
    teacher: Teacher,
    task: Task,
    section: TeacherSection,
    recipe: DistillationSection,
    seed: int,
) -> Checkpoint:
    """Train a copy of the teacher on the labels; every epoch sees a new view of the samples.

    Epochs and learning rate are `[teacher]`'s, the rest is the recipe's.

    Raises:
        TrainingError: the training diverged.

    """
    log.info("training the teacher for %d epochs", section.epochs)
    supervised = dataclasses.replace(
        recipe, losses={task.criterion: 1.0}, learning_rate=section.learning_rate
    )

    def lesson(epoch: int) -> Lesson:
        return Lesson(view=view_of(task, epoch, seed=seed, mixup=recipe.mixup))

    course = Course(
        task=task,
        knowledge=knowledge_for(supervised, task),
        lesson=lesson,
        recipe=supervised,
        resolution=teacher.resolution,
        epochs=section.epochs,
        seed=seed,
    )
    return train(folder, copy.deepcopy(teacher.module).requires_grad_(True), course)
