"""Who trains when: a student alone, peers that teach each other, generations, or a student and its own average.

Each scheme is a plan of trainings of the one loop, over its own courses: peers are one module with several ends, an
earlier generation and the average are companions. So all of them go on where they were killed, and several processes or
a cluster can take part. Whoever teaches besides the student is never changed, and never in the optimizer.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekd.distillation import checkpoints
from edgekd.distillation.evaluation import accuracy
from edgekd.distillation.knowledge import LABELS, LOGITS, OWN, POOLED, Knowledge, Taps, teacher_taps
from edgekd.distillation.loop import Course, Lesson, Says, advance, follow, train
from edgekd.distillation.losses import LOSSES, knowledge_from
from edgekd.distillation.optimization import Average
from edgekd.distillation.state import Progress
from edgekd.tasks.task import Task
from edgekd.values.artifact import Artifact
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.job import DistillationSection, LossSection

log = logging.getLogger(__name__)

# What compares two networks of one form, by the kind of the task.
MUTUAL = {
    "classification": ("kd",),
    "keywords": ("kd",),
    "recognition": ("embedding",),
    "regression": ("mse",),
    "ranking": ("mse",),
    "generation": ("word",),
    "segmentation": ("pixels",),
    "detection": ("crosskd_classes", "crosskd_boxes"),
}
AVERAGE = "average:"  # before a tap: of the average of the student's weights
_RAMP = 0.25  # of a training: a young average has little to say (Tarvainen and Valpola 2017: 40,000 of 150,000 steps)

Make = Callable[[int], nn.Module]  # from a seed to an untrained student


@dataclass(frozen=True, kw_only=True)
class Part:
    """One training of a scheme: a folder of its own, what starts in it and what that learns."""

    folder: Path
    module: Callable[[], nn.Module]
    course: Course


def learn(folder: Path, make: Make, course: Course) -> Checkpoint:
    """Train a student by the scheme of the course's recipe; called again with the folder, it goes on.

    Raises:
        TrainingError: a training diverged.
        ResourcesExhausted: the disk is full.

    """
    done = []
    for part in plan(folder, make, course):
        part.folder.mkdir(parents=True, exist_ok=True)
        module = part.module()
        kept = train(part.folder, module, part.course)
        done.append(_best(part, module, kept) if isinstance(module, Peers) else kept)
    seconds = sum(one.seconds for one in done)
    samples = len(course.task.train) * course.epochs * len(done)
    return dataclasses.replace(done[-1], seconds=seconds, images_per_second=samples / max(seconds, 1e-9))


def take_part(folder: Path, make: Make, course: Course) -> None:
    """Take part, as one of several processes, in what `learn` does in the same folder; nothing is written."""
    for part in plan(folder, make, course):
        follow(part.folder, part.module(), part.course)


def learn_an_epoch(folder: Path, make: Make, course: Course) -> Progress:
    """Train one more epoch of the first part of what `learn` would; later generations are left to it.

    Raises:
        TrainingError: the training diverged.

    """
    first = plan(folder, make, course)[0]
    return advance(first.folder, first.module(), first.course)


def plan(folder: Path, make: Make, course: Course) -> tuple[Part, ...]:
    """Return the trainings of the course's scheme in their order; each can start when those before it have ended."""
    recipe, seed = course.recipe, course.seed
    if recipe.scheme == "online":
        return (
            Part(folder=folder, module=lambda: peers_of(make, recipe.peers, seed), course=mutual(course)),
        )
    if recipe.scheme == "ema":
        return (Part(folder=folder, module=lambda: make(seed), course=with_average(course)),)
    first = Part(folder=folder, module=lambda: make(seed), course=course)
    if recipe.scheme == "offline":
        return (first,)
    parts = [first]
    for number in range(1, recipe.generations):
        parts.append(_next(parts[-1], folder / f"generation-{number + 1}", make, seed + number))
    return tuple(parts)


class Peers(nn.Module):
    """Networks of one form that read the same batch; the first one's output is the output."""

    def __init__(self, peers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.peers = nn.ModuleList(peers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Let every peer answer a batch (B, ...)."""
        answers: list[Tensor] = [peer(inputs) for peer in self.peers]
        return answers[0]


def peers_of(make: Make, count: int, seed: int) -> Peers:
    """Make peers that differ in their start; the first is what would be trained alone."""
    return Peers([make(seed + number) for number in range(count)])


def mutual(course: Course) -> Course:
    """Return what peers learn: each all that the course asks, and to agree with every other (Zhang et al. 2018, DML).

    All step at once, each towards what the others said of the same batch before it: KL for classes, which over the pair
    is symmetric, and the mean over the others where there are more.
    """
    recipe, count = course.recipe, course.recipe.peers
    agreeing = agreement(recipe, course.task)
    knowledge = [_of_peer(one, at) for at in range(count) for one in course.knowledge]
    for at in range(count):
        knowledge += [
            _between(one, at, other, count) for other in range(count) if other != at for one in agreeing
        ]
    # One gradient holds all peers': its norm is that of one times the root of their number.
    clipped = dataclasses.replace(recipe, clip=recipe.clip * math.sqrt(count))
    return dataclasses.replace(course, knowledge=tuple(knowledge), recipe=clipped)


def with_average(course: Course) -> Course:
    """Return what a student learns that also agrees with the average of its weights (Tarvainen and Valpola 2017).

    Both see the same view; dropout and the statistics of the batch are the student's alone. What the average says
    counts more and more over the first quarter of the training.
    """
    agreeing = [
        dataclasses.replace(
            one,
            name=f"{one.name}@average",
            teacher=tuple(f"{AVERAGE}{tap}" for tap in one.teacher),
            warm_up=_RAMP,
        )
        for one in agreement(course.recipe, course.task)
    ]
    taps = tuple(tap.removeprefix(AVERAGE) for one in agreeing for tap in one.teacher)

    def companion(module: nn.Module, average: Average | None) -> Says:
        shadow = frozen(module)
        if average is not None:
            shadow.load_state_dict(average.tensors, assign=True)  # shares memory: it moves with the average
            shadow.requires_grad_(False)
        says = answers_of(shadow, taps)
        return lambda inputs: {f"{AVERAGE}{tap}": tensor for tap, tensor in says(inputs).items()}

    return dataclasses.replace(course, knowledge=(*course.knowledge, *agreeing), companion=companion)


def agreement(recipe: DistillationSection, task: Task) -> tuple[Knowledge, ...]:
    """Return what compares a student with a network of its own form, `[distillation] mutual` as its weight."""
    losses: dict[str, float | LossSection] = {
        name: LossSection(weight=recipe.mutual * LOSSES[name].weight) for name in MUTUAL[task.kind]
    }
    own = dataclasses.replace(recipe, losses=losses)
    return knowledge_from(own, classes=task.outputs, task=task.kind)


def frozen(module: nn.Module) -> nn.Module:
    """Copy a module into one that answers and does not learn."""
    return copy.deepcopy(module).eval().requires_grad_(False)


def answers_of(module: nn.Module, names: Sequence[str]) -> Says:
    """Return what a frozen module says, by tap."""

    def says(inputs: Tensor) -> Mapping[str, Tensor]:
        with torch.no_grad(), Taps(module, names) as taps:
            return taps(inputs)

    return says


def _next(before: Part, folder: Path, make: Make, seed: int) -> Part:
    """Return the next generation: it starts anew, and an earlier student teaches (Furlanello et al. 2018)."""
    course = before.course
    knowledge = tuple(_from_its_like(one) for one in course.knowledge)
    taps = teacher_taps(knowledge)

    def lesson(epoch: int) -> Lesson:
        return dataclasses.replace(course.lesson(epoch), targets={})

    def companion(module: nn.Module, _average: Average | None) -> Says:
        earlier = checkpoints.load_module(frozen(module), Artifact.of(before.folder / "weights.safetensors"))
        return answers_of(earlier, taps)

    return Part(
        folder=folder,
        module=lambda: make(seed),
        course=dataclasses.replace(
            course, knowledge=knowledge, lesson=lesson, companion=companion, seed=seed
        ),
    )


def _from_its_like(one: Knowledge) -> Knowledge:
    """Tap the teacher where the student is tapped: they are of one form."""
    kept = (
        given if given == LABELS or given.startswith(OWN) else tap
        for tap, given in zip(one.student, one.teacher)
    )
    return dataclasses.replace(one, teacher=tuple(kept))


def _of_peer(one: Knowledge, at: int) -> Knowledge:
    teacher = (
        f"{OWN}{_tap(at, tap.removeprefix(OWN))}" if tap.startswith(OWN) else tap for tap in one.teacher
    )
    student = tuple(_tap(at, tap) for tap in one.student)
    return dataclasses.replace(one, name=f"{one.name}@{at}", student=student, teacher=tuple(teacher))


def _between(one: Knowledge, at: int, other: int, count: int) -> Knowledge:
    """Let one peer learn from another."""
    return dataclasses.replace(
        one,
        name=f"{one.name}@{at}<{other}",
        student=tuple(_tap(at, tap) for tap in one.student),
        teacher=tuple(f"{OWN}{_tap(other, tap)}" for tap in one.teacher),
        weight=one.weight / (count - 1),
    )


def _tap(at: int, tap: str) -> str:
    """Name a peer's tap."""
    if tap == LOGITS:
        return f"peers.{at}"
    return f"peers.{at}/{POOLED}" if tap == POOLED else f"peers.{at}.{tap}"


def _best(part: Part, trained: Peers, kept: Checkpoint) -> Checkpoint:
    """Keep the peer that is best on validation, the first of equals."""
    task = part.course.task
    scores = [accuracy(peer, task, task.validation, part.course.resolution) for peer in trained.peers]
    at = max(range(len(scores)), key=scores.__getitem__)
    log.info("of %d peers the best on validation is number %d: %.4f", len(scores), at + 1, scores[at])
    weights = checkpoints.save_module(part.folder / "student.safetensors", trained.peers[at])
    return dataclasses.replace(kept, weights=weights, accuracy=scores[at])
