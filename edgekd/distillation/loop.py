"""The one training loop: teachers are fine-tuned by it and students distilled, with resume and roll-back.

The scheme is a function from epoch to `Lesson`: which view of the samples, and what a teacher said of it. Without
a teacher a lesson has no targets, and the labels alone are learnt.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.distillation import checkpoints
from edgekd.distillation.arithmetic import Arithmetic, choose_arithmetic, here
from edgekd.distillation.evaluation import accuracy
from edgekd.distillation.fitting import Outputs, fitted
from edgekd.distillation.knowledge import LABELS, OWN, Batch, Knowledge, Taps, student_taps, total_loss
from edgekd.distillation.optimization import Average, rate_share
from edgekd.distillation.parallel import ALONE, Crew
from edgekd.distillation.state import Progress, TrainingState, saved_progress
from edgekd.distillation.views import View, batch_view
from edgekd.errors import IntegrityError, TrainingError, UsageError
from edgekd.tasks.task import Task
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.job import DistillationSection

log = logging.getLogger(__name__)

_HALVINGS = 3  # of the learning rate, before a training is given up
_CHECK_STEPS = 20  # between looks at the loss: each waits for the device
_ORDER = 1 << 32  # keeps the random numbers of the order apart from those of the views


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What one epoch learns from: a view of the training samples, and the teacher's tensors by tap (N, ...)."""

    view: View
    targets: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)


Says = Callable[[Tensor], Mapping[str, Tensor]]  # inputs (B, ...) to tensors by tap, none with a gradient


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a module is trained to do, and how."""

    task: Task
    knowledge: tuple[Knowledge, ...]
    lesson: Callable[[int], Lesson]  # by epoch, from 0
    recipe: DistillationSection
    resolution: int
    epochs: int
    seed: int
    crew: Crew = ALONE  # the processes that train together
    # A teacher that answers in every step, beside what the lesson has of one: an earlier student, or the average of this
    # one's weights. It is made of the module and that average, which is not there yet when shapes are tried.
    companion: Callable[[nn.Module, Average | None], Says] | None = None


class _Diverged(Exception):  # noqa: N818 - a turn of events that train() handles
    """The loss or its gradient is not a number any more."""


def train(folder: Path, module: nn.Module, course: Course) -> Checkpoint:
    """Train a module and return its weights; called again with the folder, it goes on after the last full epoch.

    Args:
        folder: where the state is kept, and the weights in the end.
        module: is trained in place, and ends with the weights that were kept.
        course: what to learn.

    Raises:
        TrainingError: the loss was not finite, and a smaller learning rate did not help.
        ResourcesExhausted: the disk is full.

    """
    device, path = here(), folder / "state.safetensors"
    with torch.random.fork_rng():
        state = _begin(path, module.to(device), course, device)
        course.crew.meet()  # the others take up what was begun or saved here
        with state.progress.arithmetic.at_work():
            while state.progress.epoch < course.epochs:
                _epoch(state, path, course, device)
            weights = checkpoints.save_tensors(folder / "weights.safetensors", state.weights)
            checkpoints.load_module(module, weights)
            score = accuracy(module, course.task, course.task.validation, course.resolution)
    progress = state.progress
    log.info(
        "trained %d epochs in %.0f s: validation %s %.4f",
        course.epochs,
        progress.seconds,
        course.task.metric,
        score,
    )
    return Checkpoint(
        weights=weights,
        accuracy=score,
        epochs=course.epochs,
        seconds=progress.seconds,
        images_per_second=len(course.task.train) * course.epochs / max(progress.seconds, 1e-9),
        losses=progress.losses,
    )


def follow(folder: Path, module: nn.Module, course: Course) -> None:
    """Take part in what the leader of the crew trains in the same folder, to its end; nothing is written.

    Raises:
        UsageError: the folder is not the leader's.
        TrainingError: the training diverged.

    """
    device, path = here(), folder / "state.safetensors"
    course.crew.meet()
    if saved_progress(path) is None:
        mend = "give --out a folder that all of the machines share"
        raise UsageError(f"{path} is not there", cause="the process that leads wrote it", mend=mend)
    with torch.random.fork_rng():
        state = _begin(path, module.to(device), course, device)
        with state.progress.arithmetic.at_work():
            while state.progress.epoch < course.epochs:
                _epoch(state, path, course, device)


def advance(folder: Path, module: nn.Module, course: Course) -> Progress:
    """Train one more epoch of what `train` would, and save it; return how far it has come.

    Raises:
        TrainingError: the training diverged.

    """
    device, path = here(), folder / "state.safetensors"
    with torch.random.fork_rng():
        state = _begin(path, module.to(device), course, device)
        before = state.progress.epoch
        with state.progress.arithmetic.at_work():
            while state.progress.epoch == before < course.epochs:  # an epoch that diverged begins again
                _epoch(state, path, course, device)
    return state.progress


def steps_an_epoch(course: Course) -> int:
    """Count the batches: all samples are used, in batches of nearly equal size."""
    return math.ceil(len(course.task.train) / course.recipe.batch)


def run_epoch(state: TrainingState, course: Course, device: torch.device) -> float:
    """Train one epoch, and return its mean loss.

    Raises:
        _Diverged: the loss or its gradient is not finite.

    """
    epoch, total, crew = state.progress.epoch, torch.zeros((), device=device), course.crew
    lesson, first = course.lesson(epoch), epoch * steps_an_epoch(course)
    crew.agree(state.live())
    torch.manual_seed(
        crew.seed(course.seed * 1_000_003 + epoch)
    )  # of dropout, so that a resumed run draws the same
    says = course.companion(state.module, state.average) if course.companion else None
    state.module.train()
    with Taps(state.module, student_taps(course.knowledge)) as taps:
        for step, indices in enumerate(_batches(course, epoch), first):
            own = crew.part(indices)
            material = material_of(course, lesson, own, device)
            material = dataclasses.replace(material, share=len(own) / len(indices))
            material = _accompanied(material, says, state.progress.arithmetic)
            total += take_step(state, taps, course, material, step)
            if (step - first) % _CHECK_STEPS == 0 and not math.isfinite(float(crew.total(total))):
                raise _Diverged
    mean = float(crew.total(total)) / steps_an_epoch(course)
    if not math.isfinite(mean):
        raise _Diverged
    return mean


@dataclass(frozen=True, kw_only=True)
class Material:
    """One batch on the device."""

    inputs: Tensor  # (B, ...), as a network of the course's resolution takes them
    labels: Tensor
    targets: dict[str, Tensor]
    indices: Tensor  # of the samples in the training set
    share: float = 1.0  # of the samples of this step, where several processes take it together


def _begin(path: Path, module: nn.Module, course: Course, device: torch.device) -> TrainingState:
    """Take up a saved training, or start one: the arithmetic is chosen once and kept with the state."""
    lesson = course.lesson(0)
    sample = material_of(course, lesson, np.arange(min(course.recipe.batch, len(course.task.train))), device)
    says = course.companion(module, None) if course.companion else None
    adapters = _adapters(module, course, _accompanied(sample, says, Arithmetic()))
    done = saved_progress(path)
    if done is not None:
        state = TrainingState(module, adapters, course.recipe, done.arithmetic)
        try:
            state.restore(path)
        except IntegrityError as error:
            log.warning("starting again: %s", error.what)
            path.unlink()
            return _begin(path, module, course, device)
        log.info("going on after epoch %d/%d", state.progress.epoch, course.epochs)
        return state
    state = TrainingState(
        module, adapters, course.recipe, choose_arithmetic(module, sample.inputs, training=True)
    )
    state.save(path)
    return state


def _epoch(state: TrainingState, path: Path, course: Course, device: torch.device) -> None:
    """Train and save one epoch, or go back to the last one saved at half the learning rate."""
    start_s, halvings = time.monotonic(), state.progress.halvings
    try:
        loss = run_epoch(state, course, device)
    except _Diverged:
        if halvings == _HALVINGS:
            raise TrainingError(
                f"the training diverged in epoch {state.progress.epoch + 1}",
                cause=f"the loss was not finite, and halving the learning rate {_HALVINGS} times did not help",
                mend="lower learning_rate, or look for samples or labels that are wrong",
            ) from None
        state.restore(path)
        state.progress = dataclasses.replace(state.progress, halvings=halvings + 1)
        log.warning("the loss was not finite: back to epoch %d, at half the rate", state.progress.epoch)
        return
    done = state.progress
    seconds = time.monotonic() - start_s
    state.progress = dataclasses.replace(
        done, epoch=done.epoch + 1, losses=(*done.losses, loss), seconds=done.seconds + seconds
    )
    if course.crew.leads:
        state.save(path)
    left_s = seconds * (course.epochs - done.epoch - 1)
    log.info("epoch %d/%d, loss %.3f, %.0f s left", done.epoch + 1, course.epochs, loss, left_s)


def _batches(course: Course, epoch: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.Generator(np.random.Philox(key=np.array([course.seed, _ORDER + epoch], np.uint64)))
    order = rng.permutation(len(course.task.train))
    yield from np.array_split(order, steps_an_epoch(course))


def material_of(course: Course, lesson: Lesson, indices: NDArray[np.int64], device: torch.device) -> Material:
    inputs, labels = batch_view(course.task, indices, lesson.view, course.resolution, device=device)
    targets = {
        tap: torch.from_numpy(rows[indices]).to(device, torch.float32) for tap, rows in lesson.targets.items()
    }
    return Material(
        inputs=inputs,
        labels=labels,
        targets=targets,
        indices=torch.from_numpy(indices).to(device),
    )


def _accompanied(material: Material, says: Says | None, arithmetic: Arithmetic) -> Material:
    """Add what the companion says of a batch to the teacher's targets."""
    if says is None:
        return material
    with torch.no_grad(), arithmetic.autocast(material.inputs.device):
        said = says(arithmetic.placed(material.inputs))
    return dataclasses.replace(material, targets={**material.targets, **said})


def take_step(state: TrainingState, taps: Taps, course: Course, material: Material, step: int) -> Tensor:
    """Take one step; return its loss, made not finite where the gradient is not."""
    arithmetic, recipe = state.progress.arithmetic, course.recipe
    with arithmetic.autocast(material.inputs.device):
        outputs = taps(arithmetic.placed(material.inputs))
    steps = steps_an_epoch(course) * course.epochs
    batch = Batch(labels=material.labels, indices=material.indices, progress=(step + 1) / steps)
    loss = total_loss(course.knowledge, state.adapters, outputs, material.targets, batch)
    if material.share != 1:
        loss = material.share * loss
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    course.crew.sum_gradients(state.trained())
    norm = nn.utils.clip_grad_norm_(state.trained(), recipe.clip or math.inf, foreach=True)
    share = rate_share(step, steps) * 0.5**state.progress.halvings
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.learning_rate * share
    state.optimizer.step()
    if state.average is not None:
        state.average.update(step)
    return loss.detach() + 0 * norm


def _adapters(module: nn.Module, course: Course, sample: Material) -> nn.ModuleDict:
    """Make the adapters that the shapes ask for, and what balances; their start depends on the seed alone.

    Raises:
        UsageError: a tap of the student or the teacher is not there.
        ConfigError: a loss cannot compare what is tapped.

    """
    asked = {tap for one in course.knowledge for tap in one.teacher if not tap.startswith(OWN)}
    missing = asked - {*sample.targets, LABELS}
    if missing:
        cause = f"there is nothing of {', '.join(sorted(missing))}"
        raise UsageError(
            "the teacher's labels are of other losses", cause=cause, mend="label the views again"
        )
    module.eval()
    torch.manual_seed(course.seed)
    few = sample.labels[:2], sample.indices[:2]
    with torch.no_grad(), Taps(module, student_taps(course.knowledge)) as taps:
        return fitted(
            course.knowledge,
            course.recipe.balance,
            Outputs(
                student=taps(sample.inputs[:2]), teacher={tap: one[:2] for tap, one in sample.targets.items()}
            ),
            Batch(labels=few[0], indices=few[1]),
            samples=len(course.task.train),
            classes=len(course.task.classes) or course.task.outputs,
        )
