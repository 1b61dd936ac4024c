"""Keep what the teacher says of one view of the training samples, for every student to learn from."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.distillation.arithmetic import here
from edgekd.distillation.fitting import knowledge_for
from edgekd.distillation.knowledge import Taps
from edgekd.distillation.losses import teacher_taps
from edgekd.distillation.teachers import Teacher
from edgekd.distillation.views import View, batch_view, view_of
from edgekd.errors import TeacherError
from edgekd.store import replacing
from edgekd.tasks.task import Task
from edgekd.values.artifact import Artifact
from edgekd.values.checkpoint import Labels
from edgekd.values.job import DistillationSection

log = logging.getLogger(__name__)

VERSION = 1
TOOLS = ("torch",)
_BATCH = 256
_LIMIT = 65504.0  # the largest float16


def label(  # noqa: PLR0917 - a stage takes its inputs in order
    folder: Path,
    teacher: Teacher,
    task: Task,
    view: int,
    recipe: DistillationSection,
    seed: int,
) -> Labels:
    """Run the teacher over one view of the training samples.

    Args:
        folder: where the outputs are written, a float16 row a sample.
        teacher: is not changed.
        task: its training samples are labelled.
        view: number of the view.
        recipe: its losses say which of the teacher's tensors to keep; its mixup is part of the view.
        seed: of the view.

    Raises:
        TeacherError: an output is not finite, or the teacher changes as it answers.
        ConfigError: the losses cannot serve the task.

    """
    taps = teacher_taps(knowledge_for(recipe, task))
    log.info("labelling view %d in %s", view, teacher.arithmetic)
    start_s = time.monotonic()
    outputs = _outputs(teacher, task, view_of(task, view, seed=seed, mixup=recipe.mixup), taps)
    seconds = max(time.monotonic() - start_s, 1e-9)
    log.info("view %d labelled, %.0f samples/s", view, len(task.train) / seconds)
    return Labels(
        outputs={tap: _written(folder / f"{tap}.npy", rows) for tap, rows in outputs.items()},
        view=view,
        seed=seed,
        mixup=recipe.mixup,
        samples=len(task.train),
    )


def _outputs(
    teacher: Teacher, task: Task, view: View, taps: tuple[str, ...]
) -> dict[str, NDArray[np.float16]]:
    device, count = here(), len(task.train)
    module = copy.deepcopy(teacher.module).to(device).eval()
    arithmetic = teacher.arithmetic
    arithmetic.place(module)
    parts: dict[str, list[NDArray[np.float16]]] = {tap: [] for tap in taps}
    with torch.inference_mode(), arithmetic.at_work(), Taps(module, taps) as tapped:
        for start in range(0, count, _BATCH):
            rows = np.arange(start, min(start + _BATCH, count))
            inputs, _ = batch_view(task, rows, view, teacher.resolution, device=device)
            with arithmetic.autocast(device):
                outputs = tapped(arithmetic.placed(inputs))
            for tap in taps:
                parts[tap].append(_half(outputs[tap], tap))
    _refuse_changed(teacher.module, module)
    return {tap: np.concatenate(part) for tap, part in parts.items()}


def _refuse_changed(before: torch.nn.Module, after: torch.nn.Module) -> None:
    """Refuse a teacher that changes as it answers: it says something else of the same image the next time."""
    kept = before.state_dict()
    for name, tensor in after.state_dict().items():
        if not torch.equal(kept[name].to(tensor.device), tensor):
            raise TeacherError(
                f"the teacher changes its own {name} while it answers",
                cause="what it says then depends on the samples before",
                mend="let its forward change nothing in evaluation mode",
            )


def _half(tensor: torch.Tensor, tap: str) -> NDArray[np.float16]:
    if not torch.isfinite(tensor).all():
        raise TeacherError(f"the teacher's {tap} are not finite on a training sample")
    half: NDArray[np.float16] = tensor.float().clamp(-_LIMIT, _LIMIT).cpu().numpy().astype(np.float16)
    return half


def _written(path: Path, rows: NDArray[np.float16]) -> Artifact:
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, rows, allow_pickle=False)
    return Artifact.of(path)
