"""The teachers of the example jobs that end in maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.distillation.fitting import try_losses
from edgekd.distillation.teachers import load_teacher
from edgekd.students import space_for
from edgekd.tasks.detection import from_boxes
from edgekd.tasks.masks import Masked
from edgekd.tasks.pictures import Pictures
from edgekd.tasks.scenes import digit_scenes
from edgekd.tasks.segmentation import from_masks
from edgekd.values.job import DistillationSection, LossSection, TaskSection, TeacherSection

JOBS = Path(__file__).resolve().parents[2] / "tools/jobs"


def scenes() -> Pictures:
    found = digit_scenes(most=4, sides=(14, 20), counts=(40, 4, 4))
    return from_boxes(TaskSection(data="scenes", kind="detection"), found.images, found)


def masks() -> Pictures:
    found = digit_scenes(most=2, sides=(22, 36), counts=(8, 4, 4))
    names = tuple("ground" if at == 0 else str(at - 1) for at in range(11))
    masked = Masked(images=found.images, masks=found.masks, classes=names, roles=found.roles)
    return from_masks(TaskSection(data="masks", kind="segmentation"), masked)


CASES = {"scenes_teacher": scenes, "masks_teacher": masks}


@pytest.mark.parametrize("name", CASES)
def test_a_teacher_gives_the_maps_that_its_task_asks_for(name: str):
    task = CASES[name]()
    teacher = load_teacher(TeacherSection(model=f"models.py:{name}"), beside=JOBS, task=task)
    with torch.no_grad():
        maps = teacher.module(torch.from_numpy(task.prepare(task.test.samples[:2], 64)))
    assert maps.shape == (2, *task.answer_shape(64))
    assert 0 <= task.score(maps.numpy(), task.test.labels[:2]) < 0.5  # it has learnt nothing yet


def test_the_teacher_of_the_cells_takes_photos():
    pixels = np.zeros((9, 160, 160, 3), np.uint8)
    found = digit_scenes(most=1, sides=(14, 14), counts=(3, 3, 3))
    boxes = [np.array([[at % 3, 0.1, 0.1, 0.5, 0.5, 0]], np.float32) for at in range(9)]
    cells = type(found)(
        images=pixels, boxes=boxes, masks=found.masks, classes=("a", "b", "c"), roles=found.roles
    )
    task = from_boxes(TaskSection(data="cells", kind="detection"), pixels, cells)
    teacher = load_teacher(TeacherSection(model="models.py:cells_teacher"), beside=JOBS, task=task)
    assert teacher.resolution == 160


@pytest.mark.parametrize("name", CASES)
def test_the_losses_of_dense_tasks_can_be_computed_between_teacher_and_students(name: str):
    task = CASES[name]()
    teacher = load_teacher(TeacherSection(model=f"models.py:{name}"), beside=JOBS, task=task)
    space = space_for(resolution=64, channels=task.channels, classes=task.outputs, families=task.families)
    more = (
        {"ld": 0.25, "crosskd_classes": 1.0, "crosskd_boxes": 4.0, "boxes": 1.0}
        if task.kind == "detection"
        else {
            "masks": 1.0,
            "pixels": 1.0,
            "cwd": LossSection(weight=0.1, student="logits", teacher="logits"),
        }
    )
    for losses in ({}, more):
        try_losses(DistillationSection(losses=losses), teacher, task, space)
