"""Reference outputs and accuracies, in torch, of teachers and students."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from edgekd.distillation.teachers import Teacher
from edgekd.stages.export import export_module
from edgekd.students import build
from edgekd.tasks.classification import ImageClassification
from edgekd.values.artifact import Artifact
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.model import Model
from edgekd.values.student import StudentSpec

VERSION = 1
TOOLS = ("torch", "onnx")
_BATCH = 250


def prepare(
    folder: Path, task: ImageClassification, split: str, resolution: int, limit: int | None
) -> Artifact:
    """Write a split's pre-processed images: float32, (n, 1, channels, side, side), a row an inference."""
    path = folder / "images.npy"
    np.save(path, task.inputs(task.split(split), resolution, limit=limit))
    return Artifact.of(path)


def reference(  # noqa: PLR0917 - a stage takes its inputs in order
    folder: Path, spec: StudentSpec, channels: int, classes: int, checkpoint: Checkpoint, inputs: Artifact
) -> Artifact:
    """Write the torch student's logits on prepared inputs: float32, (n, classes), the branches not folded."""
    module = build(spec, channels=channels, classes=classes)
    module.load_state_dict(load_file(checkpoint.weights.verified()))
    module.eval()
    images = np.load(inputs.verified(), mmap_mode="r")
    path = folder / "logits.npy"
    with torch.inference_mode():
        rows = [module(torch.from_numpy(np.array(row))).numpy() for row in images]
    np.save(path, np.concatenate(rows))
    return Artifact.of(path)


def teacher_accuracy(folder: Path, teacher: Teacher, task: ImageClassification, split: str) -> float:
    """Return the teacher's metric on a split, in fp32."""
    del folder  # a number is kept whole
    images = task.split(split)
    logits = []
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            batch = task.inputs(images.part(start, start + _BATCH), teacher.resolution)[:, 0]
            logits.append(teacher.module(torch.from_numpy(batch)).float().numpy())
    return task.score(np.concatenate(logits), images.labels)


def teacher_model(folder: Path, teacher: Teacher, task: ImageClassification) -> Model:
    """Export the teacher as its users run it: fp32, one image at a time."""
    shape = (1, task.channels, teacher.resolution, teacher.resolution)
    return export_module(folder, teacher.module, {"images": shape})
