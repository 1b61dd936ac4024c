"""Gate D3: does a teacher help a small network to predict numbers, and does it where labels are wrong?

    .venv/bin/python tools/bench/distillation.py --parts D3 [--seeds 5]

scikit-learn's diabetes, 300 rows to train and 142 to test, targets standardised. A student 10-16-1 learns from labels
of which none, or 15 %, are moved by 3 to 6 standard deviations; a Gaussian process that was fitted to the labels as they
are teaches. Score: mean squared error on the test rows, which are never moved. The seed divides the rows, draws what is
moved, and the student's start and order. `labels` is what each method is compared with.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from paired import fixed_arithmetic, judged, means
from torch import nn

from edgekd.distillation.evaluation import outputs_of
from edgekd.distillation.loop import Course, Lesson, train
from edgekd.distillation.losses import knowledge_from
from edgekd.distillation.views import view_of
from edgekd.tasks.regression import TableRegression, from_table, open_table
from edgekd.tasks.task import Split
from edgekd.values.job import DistillationSection, LossSection, TaskSection

TRAINED, TESTED = 300, 142
MOVED = 0.15  # share of the labels that is wrong
REPEATS, EPOCHS, BATCH = 15, 20, 60  # of the 300 rows in an epoch: 1,500 steps
RECIPE = DistillationSection(
    optimizer="adamw", learning_rate=3e-3, weight_decay=0.0, batch=BATCH, ema=0.0, epochs=EPOCHS, views=1
)
LOSSES = {
    "labels": "squares",
    "imitation": "mse",
    "bounded": "bounded",
    "rejecting": "rejecting",
    "ail": "ail",
}
# What each gained over the labels in the reference: with labels moved (row 18, and imitation), and with none (row 19).
MOVED_GAINS = {
    "imitation": 1.136 - 0.513,
    "bounded": 1.136 - 0.555,
    "rejecting": 1.136 - 0.568,
    "ail": 1.136 - 0.75,
}
CLEAN_GAINS = {"ail": 0.577 - 0.540}


def d3(seeds: int) -> dict[str, object]:
    """Return `gates` by name, each with its mean gain, the reference's, t and whether it passed, and the mean scores."""
    clean, moved = [], []
    with fixed_arithmetic():
        for seed in range(seeds):
            task = table(seed)
            given = gaussian_process(task, task.train)
            clean.append(errors_of(task, given, 0.0, seed))
            moved.append(errors_of(task, given, MOVED, seed))
    gates = {
        f"{name}{suffix}": judged([run["labels"] - run[name] for run in runs], reference)
        for suffix, runs, gains in (("_moved", moved, MOVED_GAINS), ("_clean", clean, CLEAN_GAINS))
        for name, reference in gains.items()
    }
    return {"gates": gates, "mean": {"clean": means(clean), "moved": means(moved)}}


def table(seed: int) -> TableRegression:
    """Return the rows, divided; what the loop validates on is a part of the test that nothing is chosen by."""
    found = open_table("diabetes", Path())
    test = np.zeros(len(found.values), np.bool_)
    test[np.random.default_rng(seed).permutation(len(test))[:TESTED]] = True
    section = TaskSection(data="diabetes", kind="regression", validation=0.02, validation_from="test")
    task = from_table(dataclasses.replace(found, test=test), section=section)
    whole = [
        np.concatenate([getattr(part, name) for part in (task.validation, task.test)])
        for name in ("samples", "labels")
    ]
    return dataclasses.replace(task, test=Split(samples=whole[0], labels=whole[1]))


def gaussian_process(task: TableRegression, part: Split) -> NDArray[np.float32]:
    """Fit the teacher to the training rows and return what it says of a part; (N, 1)."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    kernel = 1.0 * RBF(length_scale=5.0) + WhiteKernel(0.5)
    teacher = GaussianProcessRegressor(kernel, random_state=0)
    teacher.fit(task.prepare(task.train.samples, 1), task.train.labels[:, 0])
    found = teacher.predict(task.prepare(part.samples, 1))
    return np.asarray(found, np.float32)[:, None]


def errors_of(task: TableRegression, given: NDArray[np.float32], share: float, seed: int) -> dict[str, float]:
    """Train a student by each method from the same start; return mean squared errors."""
    labels = disturbed(task.train.labels, share, seed)
    tiled = [np.tile(array, (REPEATS, 1)) for array in (task.train.samples, labels, given)]
    taught = dataclasses.replace(task, train=Split(samples=tiled[0], labels=tiled[1]))
    spread = float(np.ptp(np.square(given - labels)))
    found = {"teacher": squared_error(gaussian_process(task, task.test), task.test)}
    for name, loss in LOSSES.items():
        section = LossSection(eta=spread) if loss == "ail" else LossSection()
        knowledge = knowledge_from(
            dataclasses.replace(RECIPE, losses={loss: section}), classes=1, task="regression"
        )
        lesson = Lesson(view=view_of(taught, 0, seed=seed), targets={"logits": tiled[2].astype(np.float16)})
        torch.manual_seed(seed)
        student = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
        course = Course(
            task=taught, knowledge=knowledge, lesson=lambda _, one=lesson: one, recipe=RECIPE, resolution=1,
            epochs=EPOCHS, seed=seed,
        )  # fmt: skip
        with TemporaryDirectory(prefix="edgekd-") as folder:
            train(Path(folder), student, course)
        found[name] = squared_error(outputs_of(student, task, task.test, 1), task.test)
    return found


def squared_error(outputs: NDArray[np.float32], part: Split) -> float:
    return float(np.square(outputs - part.labels).mean())


def disturbed(labels: NDArray[np.float32], share: float, seed: int) -> NDArray[np.float32]:
    """Move a share of the labels by 3 to 6, up or down."""
    rng = np.random.default_rng(seed)
    moved = rng.permutation(len(labels))[: round(share * len(labels))]
    changed = labels.copy()
    changed[moved] += (rng.uniform(3, 6, (len(moved), 1)) * rng.choice((-1, 1), (len(moved), 1))).astype(
        np.float32
    )
    return changed
