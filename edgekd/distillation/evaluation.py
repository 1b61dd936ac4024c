"""What a torch module scores, in fp32, with the pre-processing of the runner."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgekd.distillation.arithmetic import here
from edgekd.tasks.task import Split, Task

_BATCH = 256


def outputs_of(module: nn.Module, task: Task, split: Split, resolution: int) -> NDArray[Any]:
    """Run a split through a module in eval mode; return (N, *task.answer_shape(resolution))."""
    device = here()
    module = module.to(device).eval()
    rows = []
    with torch.inference_mode():
        for start in range(0, len(split), _BATCH):
            inputs = task.prepare(split.part(start, start + _BATCH).samples, resolution)
            rows.append(module(torch.from_numpy(inputs).to(device)).float().cpu().numpy())
    return np.concatenate(rows)


def accuracy(module: nn.Module, task: Task, split: Split, resolution: int) -> float:
    """Return the task's metric of a module on a split."""
    return task.score(outputs_of(module, task, split, resolution), split.labels)
