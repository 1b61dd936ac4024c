"""Reference outputs and accuracies, in torch, of teachers and students."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from edgekd import students
from edgekd.distillation.foreign import OnnxTeacher
from edgekd.distillation.teachers import Teacher
from edgekd.errors import TeacherError
from edgekd.stages.export import export_module
from edgekd.students import build
from edgekd.tasks.task import Rows, Run, Stepwise, Task
from edgekd.timing.session import Tensors
from edgekd.values.artifact import Artifact
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.model import Model
from edgekd.values.preprocess import Preprocess
from edgekd.values.student import StudentSpec
from edgekd.worker.rows import answered, given_of

VERSION = 1
TOOLS = ("torch", "onnx")
_BATCH = 250
_STEP_FORM = "let it return a torch module, and the whole shapes of its inputs by name"
_STEPS = 8  # of a stepwise student that are kept of an answer, on average: states differ from the first


def prepare(folder: Path, task: Task, split: str, resolution: int, limit: int | None) -> Artifact:
    """Write a split's pre-processed samples: (n, 1, ...), a row an inference."""
    path = folder / "inputs.npy"
    np.save(path, task.inputs(task.split(split), resolution, limit))
    return Artifact.of(path)


def reference(  # noqa: PLR0917 - a stage takes its inputs in order
    folder: Path, spec: StudentSpec, channels: int, classes: int, checkpoint: Checkpoint, inputs: Artifact
) -> Artifact:
    """Write the torch student's outputs on prepared inputs: float32, (n, ...), the branches not folded."""
    module = _trained(spec, channels, classes, checkpoint)
    prepared = np.load(inputs.verified(), mmap_mode="r")
    path = folder / "outputs.npy"
    with torch.inference_mode():
        rows = [module(torch.from_numpy(np.array(row))).numpy() for row in prepared]
    np.save(path, np.concatenate(rows))
    return Artifact.of(path)


def reference_answers(  # noqa: PLR0917 - a stage takes its inputs in order
    folder: Path, spec: StudentSpec, task: Task, checkpoint: Checkpoint, split: str, limit: int | None
) -> Artifact:
    """Write what a stepwise student answers in torch, step by step: (n, *answer_shape)."""
    assert isinstance(task, Stepwise)  # noqa: S101 - only such tasks have students with steps
    chosen = task.split(split) if limit is None else task.split(split).spread(limit)
    run = stepping(spec, task, checkpoint)
    path = folder / "outputs.npy"
    np.save(path, task.answers(run, chosen, students.inputs(spec, task.channels)))
    return Artifact.of(path)


def recorded_steps(  # noqa: PLR0917 - a stage takes its inputs in order
    folder: Path, spec: StudentSpec, task: Task, checkpoint: Checkpoint | None, split: str, samples: int
) -> dict[str, Artifact]:
    """Write what goes in and out of a stepwise student while it answers, by name: (n, *whole shape), a row a step.

    Steps are spread over the answers. Without a checkpoint the student is untrained.
    """
    assert isinstance(task, Stepwise)  # noqa: S101 - only such tasks have students with steps
    calls: list[Tensors] = []
    step = _step_in_torch(spec, task, checkpoint)

    def noted(row: Tensors) -> Tensors:
        given = step(row)
        calls.append({**row, **given})
        return given

    takes = students.inputs(spec, task.channels)
    few = task.split(split).spread(max(1, samples // _STEPS))
    task.answers(_over_rows(noted, spec, task), few, takes)
    kept, count = {}, min(samples, len(calls))
    for name in calls[0]:
        np.save(
            folder / f"{name}.npy", np.stack([calls[at * len(calls) // count][name] for at in range(count)])
        )
        kept[name] = Artifact.of(folder / f"{name}.npy")
    return kept


def teacher_accuracy(folder: Path, teacher: Teacher, task: Task, split: str) -> float:
    """Return the teacher's metric on a split, in fp32."""
    del folder  # a number is kept whole
    samples = task.split(split)
    outputs = []
    with torch.inference_mode():
        for start in range(0, len(samples), _BATCH):
            batch = task.prepare(samples.part(start, start + _BATCH).samples, teacher.resolution)
            outputs.append(teacher.module(torch.from_numpy(batch)).float().numpy())
    return task.score(np.concatenate(outputs), samples.labels)


def teacher_model(folder: Path, teacher: Teacher, task: Task) -> Model:
    """Export the teacher as its users run it: fp32, one sample at a time; one that is an ONNX file is that file.

    A teacher of a stepwise task may have `step()`, which returns a module and the whole shapes of what it takes by name:
    that is one step then. One without has to read the whole sample again for every step.
    """
    if isinstance(teacher.module, OnnxTeacher):
        shutil.copyfile(teacher.module.file.verified(), folder / "model.onnx")
        return Model(file=Artifact.of(folder / "model.onnx"))
    step = getattr(teacher.module, "step", None)
    if isinstance(task, Stepwise) and callable(step):
        return export_module(folder, *_step_of(step))
    name = "images" if isinstance(task.preprocess(teacher.resolution), Preprocess) else "inputs"
    letters = () if teacher.sample.is_floating_point() else (name,)
    return export_module(folder, teacher.module, {name: (1, *teacher.sample.shape[1:])}, integers=letters)


def _step_of(step: Callable[[], Any]) -> tuple[nn.Module, Mapping[str, tuple[int, ...]]]:
    try:
        module, shapes = step()
    except Exception as error:  # the user's own code may raise anything
        cause = f"{type(error).__name__}: {error}"[:300]
        raise TeacherError("the teacher's step() failed", cause=cause, mend=_STEP_FORM) from error
    if not isinstance(module, nn.Module) or not isinstance(shapes, Mapping):
        cause = f"it gave {type(module).__name__} and {type(shapes).__name__}"
        raise TeacherError("the teacher's step() gave no module and shapes", cause=cause, mend=_STEP_FORM)
    return module.eval(), shapes


def _trained(spec: StudentSpec, channels: int, classes: int, checkpoint: Checkpoint | None) -> nn.Module:
    module = build(spec, channels=channels, classes=classes)
    if checkpoint is not None:
        module.load_state_dict(load_file(checkpoint.weights.verified()))
    return module.eval()


def stepping(spec: StudentSpec, task: Task, checkpoint: Checkpoint | None) -> Run:
    """Return what runs the steps of a student, a row at a time, as a runtime would."""
    return _over_rows(_step_in_torch(spec, task, checkpoint), spec, task)


def _step_in_torch(
    spec: StudentSpec, task: Task, checkpoint: Checkpoint | None
) -> Callable[[Tensors], Tensors]:
    step = students.shipped(_trained(spec, task.channels, task.outputs, checkpoint), spec)
    takes, gives = students.inputs(spec, task.channels), students.outputs(spec, task.channels)

    def run(row: Tensors) -> Tensors:
        with torch.inference_mode():
            answers = step(*(torch.from_numpy(row[name]) for name in takes))
        return {name: answer.numpy() for name, answer in zip(gives, answers)}

    return run


def _over_rows(step: Callable[[Tensors], Tensors], spec: StudentSpec, task: Task) -> Run:
    """Return what runs a step on row after row, and hands the states on as the worker does."""
    takes, (_, *handed_on) = students.inputs(spec, task.channels), students.outputs(spec, task.channels)
    states = {name: takes[name.removeprefix("next_")] for name in handed_on}

    def run(rows: Rows) -> Rows:
        answers = list(answered(step, given_of(rows, states)))
        return {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}

    return run
