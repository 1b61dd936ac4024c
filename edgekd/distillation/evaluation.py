"""What a torch module scores, in fp32, with the pre-processing of the runner."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgekd.distillation.arithmetic import here
from edgekd.tasks.classification import ImageClassification, Split

_BATCH = 256


def logits_of(
    module: nn.Module, task: ImageClassification, split: Split, resolution: int
) -> NDArray[np.float32]:
    """Run a split through a module in eval mode; return (N, classes)."""
    device = here()
    module = module.to(device).eval()
    rows = []
    with torch.inference_mode():
        for start in range(0, len(split), _BATCH):
            inputs = task.inputs(split.part(start, start + _BATCH), resolution)[:, 0]
            rows.append(module(torch.from_numpy(inputs).to(device)).float().cpu().numpy())
    return np.concatenate(rows)


def accuracy(module: nn.Module, task: ImageClassification, split: Split, resolution: int) -> float:
    """Return the task's metric of a module on a split."""
    return task.score(logits_of(module, task, split, resolution), split.labels)
