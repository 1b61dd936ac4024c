"""What a distillation step costs: cached teacher outputs against none, and against the usual online loop.

    .venv/bin/python tools/bench/distill_step.py [--rounds 12] [--batch 128] [--data cifar10_jpeg.npz]

Prints JSON. ResNet-56 teaches residual students on CIFAR-10 (random pixels where the data is not at hand).
Rounds are interleaved, each times one step of every loop in process CPU time, on one thread unless
OMP_NUM_THREADS says otherwise; figures are medians over the rounds.

    plain   edgekd's step on the labels alone
    cached  edgekd's step with ce + dist + kd from kept teacher outputs, at the same precision
    online  fp32, channels first: teacher forward, ce + kd, clipping, SGD: the usual loop
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402 - after the number of threads is set
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from edgekd import tasks  # noqa: E402
from edgekd.distillation import loop  # noqa: E402
from edgekd.distillation.arithmetic import Arithmetic, choose_arithmetic  # noqa: E402
from edgekd.distillation.knowledge import Taps  # noqa: E402
from edgekd.distillation.losses import knowledge_from  # noqa: E402
from edgekd.distillation.state import TrainingState  # noqa: E402
from edgekd.distillation.views import batch_view, view_of  # noqa: E402
from edgekd.students import build, features  # noqa: E402
from edgekd.tasks import ImageClassification  # noqa: E402
from edgekd.values.job import DistillationSection, TaskSection  # noqa: E402
from edgekd.values.student import StageSpec, StudentSpec  # noqa: E402

DATA = ROOT.parent / "shared/data/cifar10/cifar10_jpeg.npz"
LOSSES = {"plain": {"ce": 1.0}, "cached": {"ce": 1.0, "dist": 1.0, "kd": 1.0}}
WIDTHS = {"small": (16, 32, 64), "middle": (32, 64, 128), "large": (64, 128, 256)}


def main() -> None:
    arguments = parsed()
    task, source = task_from(arguments.data)
    report = {
        "schema_version": 1,
        "bench": "distill_step",
        "data": source,
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0],
        "students": [measured(name, task, arguments) for name in WIDTHS],
        "bars": {"step_ratio": "<= 1.02", "speedup": ">= 5"},
    }
    print(json.dumps(report, indent=1))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="what a distillation step costs")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--data", type=Path, default=DATA)
    return parser.parse_args()


def task_from(path: Path) -> tuple[ImageClassification, str]:
    if path.exists():
        cache = Path(tempfile.gettempdir()) / "edgekd-bench"
        return tasks.load(TaskSection(data=str(path)), beside=ROOT, cache=cache), path.name
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5000, 32, 32, 3), dtype=np.uint8)
    return tasks.from_arrays(images, np.arange(5000) % 10), "random pixels"


def teacher() -> nn.Module:
    spec = importlib.util.spec_from_file_location("models", ROOT / "tools/jobs/models.py")
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    return models.resnet56().eval().requires_grad_(False)


def measured(name: str, task: ImageClassification, arguments: argparse.Namespace) -> dict[str, object]:
    stages = tuple(StageSpec(width=width, depth=1, kernel=3, expansion=1.0) for width in WIDTHS[name])
    spec = StudentSpec(family="residual", resolution=32, stem=stages[0].width, stages=stages)
    recipe = DistillationSection(batch=arguments.batch)
    images, _ = batch_view(task, np.arange(arguments.batch), view_of(task, 0, seed=0), task.resolution)
    arithmetic = choose_arithmetic(student(spec, task), images, training=True)
    steps = {
        kind: edgekd_step(student(spec, task), task, dataclasses.replace(recipe, losses=losses), arithmetic)
        for kind, losses in LOSSES.items()
    }
    steps["online"] = online_step(student(spec, task), task, recipe)
    found = interleaved(steps, arguments.rounds)
    return {
        "name": name,
        "spec": str(spec),
        "mmacs": round(10 ** features(spec, channels=3, classes=10)[0] / 1e6, 1),
        "arithmetic": dataclasses.asdict(arithmetic),
        "cpu_ms": {kind: round(statistics.median(ms), 2) for kind, ms in found.items()},
        "step_ratio": round(statistics.median(c / p for c, p in zip(found["cached"], found["plain"])), 4),
        "images_per_second": {
            kind: round(arguments.batch / statistics.median(ms) * 1e3) for kind, ms in found.items()
        },
        "speedup": round(statistics.median(o / c for o, c in zip(found["online"], found["cached"])), 2),
    }


def student(spec: StudentSpec, task: ImageClassification) -> nn.Module:
    return build(spec, channels=task.channels, classes=len(task.classes))


def edgekd_step(
    module: nn.Module, task: ImageClassification, recipe: DistillationSection, arithmetic: Arithmetic
) -> Callable[[int], None]:
    view = view_of(task, 0, seed=0)
    logits = np.random.default_rng(0).normal(0, 4, (len(task.train), len(task.classes))).astype(np.float16)
    targets = {"logits": logits} if len(recipe.losses) > 1 else {}
    course = loop.Course(
        task=task,
        knowledge=knowledge_from(recipe, classes=len(task.classes)),
        lesson=lambda _: loop.Lesson(view=view, targets=targets),
        recipe=recipe,
        resolution=32,
        epochs=20,
        seed=0,
    )
    state = TrainingState(module.train(), nn.ModuleDict(), recipe, arithmetic)
    taps = Taps(module, ["logits"])

    def step(number: int) -> None:
        with arithmetic.at_work():
            indices = rows(task, number, recipe.batch)
            material = loop.material_of(course, course.lesson(0), indices, torch.device("cpu"))
            loop.take_step(state, taps, course, material, 500 + number)

    return step


def online_step(
    module: nn.Module, task: ImageClassification, recipe: DistillationSection
) -> Callable[[int], None]:
    frozen, view = teacher(), view_of(task, 0, seed=0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    module.train()

    def step(number: int) -> None:
        images, labels = batch_view(task, rows(task, number, recipe.batch), view, task.resolution)
        images = images.contiguous()
        with torch.no_grad():
            given = frozen(images)
        logits = module(images)
        soft = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(given / 4, 1), reduction="batchmean") * 16
        optimizer.zero_grad()
        (F.cross_entropy(logits, labels) + soft).backward()
        nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
        optimizer.step()

    return step


def rows(task: ImageClassification, number: int, batch: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, len(task.train), batch)


def interleaved(steps: dict[str, Callable[[int], None]], rounds: int) -> dict[str, list[float]]:
    """Time every kind in each round; milliseconds of CPU time a step, one number a round.

    Plain and cached are taken in the order plain, cached, cached, plain (and the reverse in the next round), so
    that neither follows the online step more often, and a drift of the clock cancels.
    """
    found: dict[str, list[float]] = {kind: [] for kind in steps}
    for number in range(rounds + 2):
        order = ["plain", "cached", "cached", "plain", "online"]
        if number % 2:
            order = ["cached", "plain", "plain", "cached", "online"]
        spent = dict.fromkeys(steps, 0.0)
        for kind in order:
            start = time.process_time()
            steps[kind](number)
            spent[kind] += (time.process_time() - start) * 1e3 / order.count(kind)
        if number >= 2:  # the first rounds warm up
            for kind, ms in spent.items():
                found[kind].append(ms)
    return found


if __name__ == "__main__":
    main()
