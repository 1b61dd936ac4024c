"""Gate D5: does a teacher that has seen many queries help a linear model that has seen 40 to rank?

    .venv/bin/python tools/bench/distillation.py --parts D5 [--seeds 5]

Retrieval among scikit-learn's digits: 300 items, 900 queries to learn from and 597 to test by; relevant is what shows the
same digit. The student maps query and item linearly to 8 numbers, whose product is the score. `labels` knows the
relevance of 40 queries; the others know no label, and what the teacher scores in the lists of all 900. Only
`rank_distillation` knows both: its paper adds it to a loss on items one by one, and so it is held against that loss
alone, `pointwise labels`. Score: NDCG@10 on the test queries. The seed divides
the images, and draws the student's start and order.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from paired import fixed_arithmetic, judged, means
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.distillation.evaluation import outputs_of
from edgekd.distillation.knowledge import LABELS, Batch, Knowledge
from edgekd.distillation.loop import Course, Lesson, train
from edgekd.distillation.losses import knowledge_from
from edgekd.distillation.views import view_of
from edgekd.tasks.ranking import ListRanking
from edgekd.tasks.task import Split
from edgekd.values.job import DistillationSection, LossSection

ITEMS, QUERIES, LABELLED = 300, 900, 40
PIXELS, WIDTH, HIDDEN = 64, 8, 256
EPOCHS, BATCH = 50, 30  # 1,500 steps
TOP = 30  # as many of the items are relevant
BASE = 0.877
REFERENCES = {"mse": 0.931, "listnet": 0.929, "rrd": 0.926, "rankdistil": 0.916}
ADDED = 0.886  # rank distillation


class Towers(nn.Module):
    """Score all items of the pool for a query by the product of their embeddings."""

    pool: Tensor

    def __init__(self, tower: nn.Module, pool: Tensor) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("pool", pool)  # (300, 64)

    def forward(self, queries: Tensor) -> Tensor:
        """Map queries (B, 1, 64) to scores (B, 300)."""
        scores: Tensor = self.tower(queries[:, 0]) @ self.tower(self.pool).T
        return scores


def d5(seeds: int) -> dict[str, object]:
    """Return `gates` by name, each with its mean gain, the reference's, t and whether it passed, and the mean scores."""
    with fixed_arithmetic():
        runs = [scores_of(seed) for seed in range(seeds)]
    gains = {name: [run[name] - run["labels"] for run in runs] for name in REFERENCES}
    gates = {name: judged(gains[name], found - BASE) for name, found in REFERENCES.items()}
    added = [run["rank_distillation"] - run["pointwise labels"] for run in runs]
    gates["rank_distillation"] = judged(added, ADDED - BASE)
    return {"gates": gates, "mean": means(runs)}


def scores_of(seed: int) -> dict[str, float]:
    """Train a teacher, and a student by each method; return NDCG@10 on the test."""
    task, pool = retrieval(seed)
    torch.manual_seed(seed)
    hidden = (nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
    teacher = learnt(
        Towers(nn.Sequential(*hidden, nn.Linear(HIDDEN, 32)), pool), task, {"relevance": 1.0}, seed
    )
    given = outputs_of(teacher, task, task.train, ITEMS)
    given = (given - given.mean()) / given.std()
    torch.manual_seed(seed)
    start = Towers(nn.Linear(PIXELS, WIDTH, bias=False), pool)
    found = {"teacher": score(teacher, task)}
    few, unlabelled = labelled_part(task), without_labels(task)
    found["labels"] = score(learnt(start, few, {"relevance": 1.0}, seed), task)
    for name in REFERENCES:
        top = TOP if name == "rankdistil" else None
        found[name] = score(learnt(start, unlabelled, {name: LossSection(top=top)}, seed, given), task)
    both = joined(few, unlabelled)  # as many queries with labels as without, and twice the batch
    said = np.concatenate([np.zeros((QUERIES, ITEMS), np.float32), given])
    added: dict[str, float | LossSection] = {
        "rank_distillation": LossSection(weight=2.0, top=TOP, decay=10.0)
    }
    found["pointwise labels"] = score(learnt(start, few, {}, seed, pointwise=1.0), task)
    found["rank_distillation"] = score(learnt(start, both, added, seed, said, pointwise=2.0), task)
    return found


def retrieval(seed: int) -> tuple[ListRanking, Tensor]:
    """Return the queries, (N, 1, 64) with the relevance of all items, and the items' pixels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels, digits = (bunch.data / 16 - 0.5).astype(np.float32), bunch.target
    order = np.random.default_rng(seed).permutation(len(pixels))
    items, queries = order[:ITEMS], order[ITEMS:]
    relevance = (digits[queries][:, None] == digits[items]).astype(np.int64)
    samples = pixels[queries][:, None]
    parts = [
        Split(samples=samples[one], labels=relevance[one]) for one in (slice(QUERIES), slice(QUERIES, None))
    ]
    task = ListRanking(
        name="digits", train=parts[0], validation=parts[1].spread(20), test=parts[1],
        columns=tuple(map(str, range(PIXELS))), mean=(0.0,) * PIXELS, std=(1.0,) * PIXELS, resolution=ITEMS,
    )  # fmt: skip
    return task, torch.from_numpy(pixels[items])


def labelled_part(task: ListRanking) -> ListRanking:
    """Return the task with its first 40 queries, again and again until they are as many."""
    rows = np.arange(QUERIES) % LABELLED
    return with_train(task, task.train.samples[rows], task.train.labels[rows])


def without_labels(task: ListRanking) -> ListRanking:
    """Return the task with nothing relevant to any query."""
    return with_train(task, task.train.samples, np.zeros_like(task.train.labels))


def joined(first: ListRanking, second: ListRanking) -> ListRanking:
    samples, labels = (
        np.concatenate([getattr(one.train, name) for one in (first, second)])
        for name in ("samples", "labels")
    )
    return with_train(first, samples, labels)


def with_train(task: ListRanking, samples: NDArray[np.float32], labels: NDArray[np.int64]) -> ListRanking:
    return dataclasses.replace(task, train=Split(samples=samples, labels=labels))


def learnt(
    start: nn.Module,
    task: ListRanking,
    losses: dict[str, float | LossSection],
    seed: int,
    given: NDArray[np.float32] | None = None,
    *,
    pointwise: float = 0.0,
) -> nn.Module:
    """Train a copy of a module."""
    recipe = DistillationSection(
        losses=losses,
        optimizer="adamw",
        learning_rate=3e-3,
        weight_decay=0.0,
        ema=0.0,
        batch=BATCH * round(len(task.train) / QUERIES),
    )
    targets = {} if given is None else {"logits": given.astype(np.float16)}
    knowledge = knowledge_from(recipe, classes=1, task="ranking")
    if pointwise:
        own = Knowledge(name="pointwise", loss=by_item, teacher=(LABELS,), weight=pointwise)
        knowledge = (*knowledge, own)
    lesson = Lesson(view=view_of(task, 0, seed=seed), targets=targets)
    course = Course(
        task=task, knowledge=knowledge, lesson=lambda _: lesson,
        recipe=recipe, resolution=ITEMS, epochs=EPOCHS, seed=seed,
    )  # fmt: skip
    module = copy.deepcopy(start)
    with TemporaryDirectory(prefix="edgekd-") as folder:
        train(Path(folder), module, course)
    return module


def by_item(student: Tensor, labels: Tensor, _batch: Batch) -> Tensor:
    """Tell relevant items from others, each by itself: what rank distillation is added to; unlabelled lists are left out.

    The sum over a list's items, over the 30 that are relevant.
    """
    told = (labels.sum(dim=1, keepdim=True) > 0).to(student.dtype)
    found = F.binary_cross_entropy_with_logits(student, labels.to(student.dtype), reduction="none")
    return (told * found).sum(dim=1).mean() / TOP


def score(module: nn.Module, task: ListRanking) -> float:
    return task.score(outputs_of(module, task, task.test, ITEMS), task.test.labels)
