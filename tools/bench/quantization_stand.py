"""Students to quantise: drawn, trained for a moment, exported; and what their int8 files are made of and judged by."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekd.devices import Device
from edgekd.distillation.fitting import knowledge_for
from edgekd.distillation.loop import Course, Lesson, train
from edgekd.distillation.views import view_of
from edgekd.pipeline.forms import Judge, Source
from edgekd.pipeline.single import outputs_of
from edgekd.stages.evaluate import prepare
from edgekd.stages.export import export
from edgekd.stages.lost import lost_on_task
from edgekd.stages.quantize import Quantizers, calibrate
from edgekd.store import Store
from edgekd.students import build, draw, space_for
from edgekd.tasks import ImageClassification, from_arrays, load
from edgekd.tasks.task import Task
from edgekd.values.artifact import Artifact
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.job import DistillationSection, TaskSection
from edgekd.values.model import Engine, Model
from edgekd.values.student import Space, StudentSpec
from edgekd.values.variant import Loss, Tolerance

ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Stand:
    """What every part stands on."""

    keep: Path
    device: Device
    quantizers: Quantizers
    store: Store


@dataclass(frozen=True, kw_only=True)
class Student:
    """A trained student, its float file and what its int8 files are made of and judged by."""

    name: str
    task: Task
    model: Model
    rows: dict[str, Artifact]  # training samples
    splits: dict[str, dict[str, Artifact]]  # validation and test inputs


def drawn(space: Space, given: argparse.Namespace) -> list[StudentSpec]:
    rng = random.Random(given.seed)  # noqa: S311 - not cryptography
    drawn = draw(space, 10 * given.students, rng)
    return rng.sample(drawn, min(given.students, len(drawn)))


def students(
    stand: Stand, given: argparse.Namespace, done: set[tuple[str, str]], end: float
) -> Iterator[tuple[str, Student]]:
    for data in given.data or ["digits"]:
        kind, _, path = data.rpartition(":")
        section = TaskSection(kind=kind or "classification", data=path)
        task = smaller(load(section, beside=Path.cwd(), cache=stand.keep / "data", seed=given.seed), given)
        classes = task.outputs
        space = space_for(
            resolution=task.resolution, channels=task.channels, classes=classes, families=task.families
        )
        for spec in drawn(space, given):
            if (str(spec), task.name) in done:
                continue
            if time.monotonic() > end:
                return
            checkpoint = stand.store.run(trained, spec, task, given.epochs, given.seed)
            yield str(spec), student_of(stand, spec, task, checkpoint)


def smaller(task: Task, given: argparse.Namespace) -> Task:
    """Take fewer images of a large set."""
    if not isinstance(task, ImageClassification) or len(task.train) <= given.most:
        return task
    train, test = task.train.spread(given.most), task.test.spread(given.most_test)
    images = np.concatenate([train.samples, test.samples])
    labels = np.concatenate([train.labels, test.labels])
    section = TaskSection(data=task.name, validation=0.25)
    mask = np.arange(len(images)) >= len(train)
    return from_arrays(images, labels, section=section, classes=task.classes, test=mask)


def trained(folder: Path, spec: StudentSpec, task: Task, epochs: int, seed: int) -> Checkpoint:
    """Train a student on labels for some epochs."""
    recipe = DistillationSection(
        losses={task.criterion: 1.0}, batch=64, optimizer="adamw", learning_rate=0.003, ema=0.0
    )
    course = Course(
        task=task,
        knowledge=knowledge_for(recipe, task),
        lesson=lambda epoch: Lesson(view=view_of(task, epoch, seed=seed, mixup=0.0)),
        recipe=recipe,
        resolution=spec.resolution,
        epochs=epochs,
        seed=seed,
    )
    return train(folder, build(spec, channels=task.channels, classes=task.outputs, seed=seed), course)


def student_of(stand: Stand, spec: StudentSpec, task: Task, checkpoint: Checkpoint) -> Student:
    model = stand.store.run(export, spec, task.channels, task.outputs, checkpoint)
    (name,) = [one.name for one in stand.device.inspect(model.file).inputs]
    rows = stand.store.run(calibrate, task, spec.resolution, ROWS)
    return Student(
        name=str(spec),
        task=task,
        model=model,
        rows={name: rows},
        splits={
            split: {name: stand.store.run(prepare, task, split, spec.resolution, None)}
            for split in ("validation", "test")
        },
    )


def answers(stand: Stand, student: Student, engine: Engine, split: str) -> np.ndarray:
    folder = stand.keep / "outputs" / "answers"
    (found,) = outputs_of(stand.device, engine, student.splits[split], folder).values()
    return found.reshape(len(found), -1)


def judge_of(stand: Stand, student: Student, parent: Engine) -> Judge:
    expected = answers(stand, student, parent, "validation")
    labels = student.task.validation.labels

    def judge(engine: Engine) -> Loss:
        found = answers(stand, student, engine, "validation")
        return lost_on_task(expected, found, labels, student.task.score)

    return judge


def source(
    stand: Stand, parent: Engine, rows: dict[str, Artifact], judge: Judge, tolerance: Tolerance
) -> Source:
    return Source(
        parent=parent,
        calibration=rows,
        held_out=rows,
        judge=judge,
        device=stand.device,
        quantizers=stand.quantizers,
        store=stand.store,
        tolerance=tolerance,
    )
