"""A program for torchrun: small courses, each trained by all of its processes together.

    python -m torch.distributed.run --nproc-per-node 2 -m tests.distillation.in_company FOLDER [KILL]

With KILL, the process that leads dies before that epoch of the first course.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekd.distillation import loop
from edgekd.distillation.arithmetic import Arithmetic
from edgekd.distillation.fitting import knowledge_for
from edgekd.distillation.loop import Course, Lesson, follow, train
from edgekd.distillation.parallel import ALONE, Crew, meeting
from edgekd.distillation.views import view_of
from tests.distillation.small import digits, net, recipe

KILLED = 137


def without_norm() -> nn.Module:
    """Return a network in which no sample knows of another."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        return nn.Sequential(features, nn.Flatten(), nn.Linear(32, 10))


def courses(crew: Crew = ALONE) -> dict[str, tuple[nn.Module, Course]]:
    """Return what is trained, by name: batches of 33 and 32 samples, an adapter, and a loss that begins late."""
    task = digits()
    rng = np.random.default_rng(0)
    targets = {
        "logits": rng.normal(size=(len(task.train), 10)).astype(np.float16),
        "pooled": rng.normal(size=(len(task.train), 12)).astype(np.float16),
    }
    each = {"ce": 1.0, "kd": 0.5, "pooled": 0.5}
    given = {
        "plain": (without_norm(), recipe(losses=each, mixup=0.3)),
        "norm": (net(), recipe(losses=each)),
        "dropout": (net(dropout=0.3), recipe(losses={"ce": 1.0, "dist": 1.0})),
    }
    return {
        name: (
            module,
            Course(
                task=task,
                knowledge=knowledge_for(asked, task),
                lesson=lambda epoch, asked=asked: Lesson(
                    view=view_of(task, epoch, seed=0, mixup=asked.mixup), targets=targets
                ),
                recipe=asked,
                resolution=8,
                epochs=3,
                seed=0,
                crew=crew,
            ),
        )
        for name, (module, asked) in given.items()
    }


def main() -> None:
    """Train every course."""
    folder, killed = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None
    torch.set_num_threads(1)
    loop.choose_arithmetic = lambda *_, **__: Arithmetic()
    with meeting() as met:
        for name, (module, course) in courses(met.crew).items():
            if met.crew.leads and killed is not None:
                asked = course.lesson

                def lesson(epoch: int, asked=asked) -> Lesson:  # noqa: ANN001
                    if epoch == killed:
                        os._exit(KILLED)
                    return asked(epoch)

                course = dataclasses.replace(course, lesson=lesson)  # noqa: PLW2901
            (train if met.crew.leads else follow)(folder / name, module, course)


if __name__ == "__main__":
    main()
