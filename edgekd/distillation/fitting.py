"""Fit what learns beside a student to two networks, and try every loss once before the first step."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.distillation.balancing import balancer
from edgekd.distillation.knowledge import (
    BALANCE,
    LOGITS,
    Batch,
    Knowledge,
    Shapes,
    Taps,
    given_to,
    student_taps,
    teacher_taps,
    term,
)
from edgekd.distillation.losses import knowledge_from
from edgekd.distillation.teachers import Teacher
from edgekd.errors import ConfigError
from edgekd.students import build, smallest
from edgekd.tasks.task import Task
from edgekd.values.job import DistillationSection
from edgekd.values.student import Space

_FEW = 2  # samples to try a loss on


def knowledge_for(recipe: DistillationSection, task: Task) -> tuple[Knowledge, ...]:
    """Make what `[distillation] losses` names, and what the task is learnt by where it names nothing.

    Raises:
        ConfigError: an unknown name or setting, or a loss that cannot serve the task.

    """
    named = recipe if recipe.losses else dataclasses.replace(recipe, losses=dict(task.losses))
    return knowledge_from(named, classes=task.outputs, task=task.kind)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Tensors of a few samples by tap."""

    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]


def fitted(
    knowledge: Sequence[Knowledge],
    balance: str,
    outputs: Outputs,
    batch: Batch,
    *,
    samples: int,
    classes: int,
) -> nn.ModuleDict:
    """Make the adapters that the shapes ask for, and under BALANCE what sums the losses.

    Args:
        knowledge: what is learnt.
        balance: as `[distillation] balance` names it.
        outputs: of a few samples.
        batch: of the same samples.
        samples: in the training set.
        classes: that are told apart in training; none: the width of what the task is answered by.

    Raises:
        ConfigError: a loss cannot compare what is tapped.

    """
    made = nn.ModuleDict()
    given = given_to(outputs.student, outputs.teacher, batch.labels)
    for one in knowledge:
        if one.adapter is not None:
            made[one.name] = one.adapter(
                Shapes(
                    name=one.name,
                    student=tuple(outputs.student[tap].shape[1:] for tap in one.student),
                    teacher=tuple(given[tap].shape[1:] for tap in one.teacher),
                    samples=samples,
                    classes=classes,
                )
            )
    balancing = balancer(balance, [one.name for one in knowledge])
    if balancing is not None:
        made[BALANCE] = balancing
    made.to(batch.labels.device)
    _try_out(knowledge, made, outputs, batch)
    return made


@torch.no_grad()
def try_losses(recipe: DistillationSection, teacher: Teacher, task: Task, space: Space) -> None:
    """Compute the losses once between the teacher and the smallest student of each family, before any work.

    Raises:
        ConfigError: a loss cannot serve the task, or cannot compare what is tapped.
        UsageError: there is nothing to tap by a name.

    """
    knowledge = knowledge_for(recipe, task)
    where = next((weight.device for weight in teacher.module.parameters()), torch.device("cpu"))
    few = task.train.spread(_FEW)
    labels = torch.from_numpy(np.asarray(few.labels))
    with Taps(teacher.module, teacher_taps(knowledge)) as taps:
        shown = torch.from_numpy(task.prepare(few.samples, task.resolution)).to(where)
        given = {tap: tensor.cpu() for tap, tensor in taps(shown).items()}
    for family in space.families:
        spec = smallest(space, family)
        student = build(spec, channels=task.channels, classes=task.outputs).eval()
        inputs = torch.from_numpy(task.prepare(few.samples, spec.resolution))
        with torch.random.fork_rng(), Taps(student, student_taps(knowledge)) as taps:
            fitted(
                knowledge,
                recipe.balance,
                Outputs(student=taps(inputs), teacher=given),
                Batch(labels=labels, indices=torch.arange(len(labels))),
                samples=len(task.train),
                classes=len(task.classes) or task.outputs,
            )


@torch.no_grad()
def _try_out(knowledge: Sequence[Knowledge], adapters: nn.ModuleDict, outputs: Outputs, batch: Batch) -> None:
    """Compute every loss on copies, so that no bank and no norm remembers it."""
    given = given_to(outputs.student, outputs.teacher, batch.labels)
    known = Batch(labels=batch.labels, indices=batch.indices, outputs=given.get(LOGITS))
    trial = copy.deepcopy(adapters)
    for one in knowledge:
        _try_one(one, trial, outputs.student, given, known)


def _try_one(
    one: Knowledge,
    adapters: nn.ModuleDict,
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    batch: Batch,
) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of shapes that would be stretched to fit
            term(one, adapters, student, teacher, batch)
    except (RuntimeError, IndexError, ValueError, UserWarning) as error:
        pairs = ", ".join(
            f"{a} {tuple(student[a].shape[1:])} with {b} {tuple(teacher[b].shape[1:])}"
            for a, b in zip(one.student, one.teacher)
        )
        raise ConfigError(
            f"the loss `{one.name}` cannot compare what is tapped",
            cause=f"{pairs}: {error}"[:300],
            mend="tap tensors of the same form in student and teacher",
        ) from error
