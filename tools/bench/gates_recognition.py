"""Gate D4: do relations that a teacher knows help a tiny student to tell apart classes that neither has seen?

    .venv/bin/python tools/bench/distillation.py --parts D4 --mnist FOLDER [--seeds 5]

FOLDER holds MNIST's t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz. A teacher of two convolutions and 128 features, and a
student 784-12, learn the classes 0 to 6 from labels; the student of each method learns from the teacher's features too. Score: area
under the ROC curve of "the same digit" against "another", by the cosine of the features before the last layer, over all
pairs of 1,000 images of 7, 8 and 9. `labels` is what each method is compared with; recall@1 is shown beside it. The seed
draws starts and order.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from paired import fixed_arithmetic, judged, means
from torch import nn

from edgekd.distillation.knowledge import LOGITS, POOLED, Taps
from edgekd.distillation.loop import Course, Lesson, train
from edgekd.distillation.losses import knowledge_from
from edgekd.distillation.views import view_of
from edgekd.tasks import ImageClassification, from_arrays
from edgekd.tasks.recognition import nearest_alike
from edgekd.values.job import DistillationSection, LossSection, TaskSection

SEEN, IMAGES, LABELS = 7, "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
PAIRED = 1000  # images of unseen classes that are compared
EPOCHS, BATCH = 8, 64
BASE = 0.597
REFERENCES = {"directions": 0.643, "rkd": 0.653, "sp": 0.653, "pkt": 0.645, "infonce": 0.642, "vid": 0.670}
WEIGHTS = {"directions": 1.0, "rkd": 1.0, "sp": 100.0, "pkt": 3000.0, "infonce": 1.0, "vid": 1.0}


def d4(seeds: int, mnist: Path) -> dict[str, object]:
    """Return `gates` by name, each with its mean gain, the reference's, t and whether it passed, and the mean scores."""
    images, labels = read(mnist)
    seen = labels < SEEN
    section = TaskSection(data="MNIST", flip=False, crop=0, validation=0.05)
    task = from_arrays(images[seen], labels[seen], section=section)
    unseen = np.flatnonzero(~seen)[:PAIRED]
    shown = torch.from_numpy(task.prepare(images[unseen][..., None], task.resolution))
    with fixed_arithmetic():
        runs = [scores_of(task, shown, labels[unseen], seed) for seed in range(seeds)]
    gains = {name: [run[name] - run["labels"] for run in runs] for name in REFERENCES}
    gates = {name: judged(gains[name], found - BASE) for name, found in REFERENCES.items()}
    return {"gates": gates, "mean": means(runs)}


def read(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read MNIST's test files: (10000, 28, 28) and (10000,)."""
    with gzip.open(folder / IMAGES) as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / LABELS) as file:
        return images, np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)


def scores_of(
    task: ImageClassification, shown: torch.Tensor, labels: NDArray[np.int64], seed: int
) -> dict[str, float]:
    """Train a teacher, and a student by each method from the same start; return areas, and recalls."""
    teacher = learnt(convolutions(seed), task, {"ce": 1.0}, seed)
    inputs = torch.from_numpy(task.prepare(task.train.samples, task.resolution))
    given = tapped(teacher, inputs)
    found = judge("teacher", teacher, shown, labels)
    for name in ("labels", *REFERENCES):
        taps = {"student": POOLED, "teacher": POOLED} if name == "vid" else {}
        own = {} if name == "labels" else {name: LossSection(weight=WEIGHTS[name], **taps)}
        student = learnt(perceptron(seed), task, {"ce": 1.0, **own}, seed, given)
        found |= judge(name, student, shown, labels)
    return found


def convolutions(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, SEEN),
    )


def perceptron(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, SEEN))


def learnt(
    module: nn.Module,
    task: ImageClassification,
    losses: dict[str, float | LossSection],
    seed: int,
    given: dict[str, NDArray[np.float16]] | None = None,
) -> nn.Module:
    recipe = DistillationSection(
        losses=losses,
        optimizer="adamw",
        learning_rate=2e-3,
        weight_decay=0.0,
        batch=BATCH,
        ema=0.0,
        mixup=0.0,
    )
    knowledge = knowledge_from(recipe, classes=SEEN)
    needed = {tap for one in knowledge for tap in one.teacher}
    lesson = Lesson(
        view=view_of(task, 0, seed=seed),
        targets={tap: rows for tap, rows in (given or {}).items() if tap in needed},
    )
    course = Course(
        task=task, knowledge=knowledge, lesson=lambda _: lesson, recipe=recipe, resolution=task.resolution,
        epochs=EPOCHS, seed=seed,
    )  # fmt: skip
    with TemporaryDirectory(prefix="edgekd-") as folder:
        train(Path(folder), module, course)
    return module.eval()


def tapped(module: nn.Module, inputs: torch.Tensor) -> dict[str, NDArray[np.float16]]:
    """Return logits and pooled features."""
    with torch.no_grad(), Taps(module, (LOGITS, POOLED)) as taps:
        return {tap: rows.numpy().astype(np.float16) for tap, rows in taps(inputs).items()}


def judge(name: str, module: nn.Module, shown: torch.Tensor, labels: NDArray[np.int64]) -> dict[str, float]:
    features = tapped(module, shown)[POOLED].astype(np.float64)
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    return {name: area(units, labels), f"{name} recall@1": float(nearest_alike(units, labels).mean())}


def area(units: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the area under the curve: the chance that a pair of the same class is nearer than another pair."""
    from scipy.stats import rankdata

    first, second = np.triu_indices(len(units), 1)
    same = labels[first] == labels[second]
    ranks = rankdata((units @ units.T)[first, second])
    count = int(same.sum())
    return float((ranks[same].sum() - count * (count + 1) / 2) / (count * (len(same) - count)))
