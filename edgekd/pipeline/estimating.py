"""How long a run may take, from how fast this machine computes a student and the teacher forwards."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.pipeline.workbench import Workbench
from edgekd.students import build
from edgekd.values.student import StudentSpec

_BACKWARD = 3.0  # times a forward pass that a training step takes: gradients of activations and of weights
_BATCH = 64
_ROUNDS = 2


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What a run is expected to take; good to a factor of about 2."""

    proposals: float  # students to build and time, the refused ones included
    seconds: float


def expected_effort(bench: Workbench, spec: StudentSpec, *, kept: float) -> Effort:
    """Estimate a run from a student of the size that will be trained; nothing is trained.

    Args:
        bench: of the job; its device was learnt.
        spec: a large student within reach.
        kept: share of the proposals that are expected to be within the budget.

    """
    search, distillation = bench.job.search, bench.job.distillation
    samples = len(bench.task.train)
    student_s = _forward_s(bench, spec) * _BACKWARD
    epochs = search.trials * distillation.short_epochs + search.finalists * distillation.epochs
    views = min(distillation.views, distillation.epochs)
    proposals = search.trials / max(kept, 0.1)
    timed = max(len({trial.proposal.spec for trial in bench.history().trials}), 1)
    device_s = bench.device.device_seconds / timed * (proposals + search.finalists)
    training_s = samples * (epochs * student_s + views * _teacher_s(bench))
    return Effort(proposals=proposals, seconds=training_s + device_s)


def _forward_s(bench: Workbench, spec: StudentSpec) -> float:
    """Return the seconds a student takes for a sample, forward in torch."""
    module = build(spec, channels=bench.space.channels, classes=bench.space.classes)
    samples = bench.task.train.spread(_BATCH).samples
    return _timed(module.eval(), torch.from_numpy(bench.task.prepare(samples, spec.resolution)))


def _teacher_s(bench: Workbench) -> float:
    rows = torch.arange(_BATCH) % len(bench.teacher.sample)
    return _timed(bench.teacher.module, bench.teacher.sample[rows])


def _timed(module: nn.Module, inputs: Tensor) -> float:
    weight = next(module.parameters(), None)
    inputs = inputs.to(weight.device if weight is not None else None)
    taken = []
    with torch.inference_mode():
        module(inputs)
        for _ in range(_ROUNDS):
            began = time.monotonic()
            module(inputs)
            taken.append(time.monotonic() - began)
    return min(taken) / len(inputs)
