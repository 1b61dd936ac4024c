"""Gate D8: what distilling a quantised student gives back of what rounding took, on digits, over seeds.

    .venv/bin/python tools/bench/gates_quantized.py [--seeds 8] [--students mlp,cnn] [--bits 3,4] [--labels]

Prints JSON. Each seed trains a teacher (an MLP 64-256-256-10) on 1,200 labelled digits and distills a float student from
it, which never sees a label. The student's weights and activations are then simulated with few bits: calibrated by least
squared error (post-training), trained on by KL to the teacher (QAD), and with --labels, to compare, by cross-entropy on 100
labels for as many steps.
Accuracies are those of 597 digits kept aside, after the last epoch. The gate: QAD closes at least half of the gap
between post-training and float, and the gain over post-training has t > 3, paired by seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402 - after the number of threads is set
import torch  # noqa: E402
from torch import nn  # noqa: E402

from edgekd import tasks  # noqa: E402
from edgekd.distillation import loop  # noqa: E402
from edgekd.distillation.arithmetic import Arithmetic  # noqa: E402
from edgekd.distillation.evaluation import accuracy, outputs_of  # noqa: E402
from edgekd.distillation.fitting import knowledge_for  # noqa: E402
from edgekd.distillation.loop import Course, Lesson, train  # noqa: E402
from edgekd.distillation.quantized import QuantizedStudent  # noqa: E402
from edgekd.distillation.views import view_of  # noqa: E402
from edgekd.stages.distill_quantized import quantized_course  # noqa: E402
from edgekd.students import build, fold  # noqa: E402
from edgekd.tasks.task import Split, Task  # noqa: E402
from edgekd.values.job import DistillationSection, TaskSection  # noqa: E402
from edgekd.values.quantization import Scheme  # noqa: E402
from edgekd.values.student import StageSpec, StudentSpec  # noqa: E402

TRAINED, LABELLED, BATCH = 1200, 100, 100
FLOAT_EPOCHS, QUANTIZED_EPOCHS = 100, 40
SIDE = 8
SHARE, SIGNIFICANT = 0.5, 3.0
SPEC = StudentSpec(
    family="residual",
    resolution=SIDE,
    stem=8,
    stages=(
        StageSpec(width=8, depth=1, kernel=3, expansion=1.0),
        StageSpec(width=16, depth=1, kernel=3, expansion=1.0),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="gate D8: quantisation-aware distillation")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--students", default="mlp,cnn")
    parser.add_argument("--bits", default="3,4", help="of weights and activations alike")
    parser.add_argument("--labels", action="store_true", help="also train on labels (QAT)")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    bits = [int(one) for one in arguments.bits.split(",")]
    # Which arithmetic is fastest is measured, and bf16 would make the seeds' runs differ by the machine's mood.
    loop.choose_arithmetic = lambda *_, **__: Arithmetic()  # type: ignore[assignment]
    began = time.monotonic()
    found = {
        name: judged([run(name, seed, bits, arguments.labels) for seed in seeds], bits)
        for name in arguments.students.split(",")
    }
    report = {
        "schema_version": 1,
        "bench": "gates_quantized",
        "seeds": list(seeds),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - began, 1),
        "students": found,
        "bars": {"closed": f">= {SHARE}", "t": f"> {SIGNIFICANT}", "at": "W3A3"},
        "passed": 3 in bits and all(one["W3A3"]["passed"] for one in found.values()),
    }
    print(json.dumps(report, indent=1))
    sys.exit(0 if report["passed"] else 1)


def run(name: str, seed: int, bits: list[int], labels: bool) -> dict[str, float]:  # noqa: FBT001
    """Train one seed's teacher and student; return accuracies by what was done."""
    task = digits()
    with TemporaryDirectory(prefix="edgekd-") as scratch:
        folder = Path(scratch)
        teacher = learnt(folder / "teacher", mlp(256, 256, seed=seed), task, labels_only(task), seed)
        given = outputs_of(teacher, task, task.train, SIDE).astype(np.float16)
        lesson = Lesson(view=view_of(task, 0, seed=seed), targets={"logits": given})
        start = mlp(24, 24, seed=seed) if name == "mlp" else build(SPEC, channels=1, classes=10, seed=seed)
        student = fold(learnt(folder / "float", start, task, lesson, seed))
        found = {"teacher": score(teacher, task), "float": score(student, task)}
        for few in bits:
            found |= quantized(folder / str(few), student, task, lesson, bits=few, seed=seed, labels=labels)
    print(name, seed, {key: round(value, 4) for key, value in found.items()}, file=sys.stderr)
    return found


def quantized(
    folder: Path, student: nn.Module, task: Task, lesson: Lesson, *, bits: int, seed: int, labels: bool
) -> dict[str, float]:
    scheme, place = Scheme(weight_bits=bits, activation_bits=bits), f"W{bits}A{bits}"
    calibrated = QuantizedStudent(student, scheme)
    calibrated.calibrate(torch.from_numpy(task.prepare(task.train.samples, SIDE)))
    found = {f"{place} ptq": score(calibrated, task)}
    course = quantized_course(task, lambda _: lesson, SIDE, QUANTIZED_EPOCHS, seed, batch=BATCH)
    few = dataclasses.replace(task, train=task.train.part(0, LABELLED))
    by_labels = dataclasses.replace(
        course,
        task=few,
        lesson=lambda _: labels_only(few),
        epochs=QUANTIZED_EPOCHS * TRAINED // LABELLED,  # as many steps
        knowledge=knowledge_for(dataclasses.replace(course.recipe, losses={"ce": 1.0}), task),
    )
    for name, one in (("qad", course), *([("qat-ce", by_labels)] if labels else [])):
        (folder / name).mkdir(parents=True)
        module = QuantizedStudent(student, scheme)
        module.load_state_dict(calibrated.state_dict())
        train(folder / name, module, one)
        found[f"{place} {name}"] = score(module, task)
    return found


def learnt(folder: Path, module: nn.Module, task: Task, lesson: Lesson, seed: int) -> nn.Module:
    """Train a float network: by the labels where the lesson has no targets, else by KL alone."""
    folder.mkdir(parents=True)
    losses = {"kd": 1.0} if lesson.targets else {"ce": 1.0}
    recipe = DistillationSection(
        losses=losses, batch=BATCH, optimizer="adamw", learning_rate=3e-3, weight_decay=1e-4
    )
    course = Course(
        task=task,
        knowledge=knowledge_for(recipe, task),
        lesson=lambda _: lesson,
        recipe=recipe,
        resolution=SIDE,
        epochs=FLOAT_EPOCHS,
        seed=seed,
    )
    train(folder, module, course)
    return module.eval()


def labels_only(task: Task) -> Lesson:
    return Lesson(view=view_of(task, 0, seed=0))


def digits() -> Task:
    """All 1,797 digits: 1,200 to train on, the others to judge by, in an order that is always the same."""
    whole = tasks.load(TaskSection(data="digits", flip=False, crop=0), beside=Path(), cache=Path())
    parts = (whole.train, whole.validation, whole.test)
    samples, labels = (
        np.concatenate([getattr(one, name) for one in parts]) for name in ("samples", "labels")
    )
    order = np.random.default_rng(0).permutation(len(labels))
    pool = Split(samples=samples[order], labels=labels[order])
    rest = pool.part(TRAINED, len(pool))
    return dataclasses.replace(whole, train=pool.part(0, TRAINED), validation=rest, test=rest)


def mlp(*hidden: int, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        widths = (SIDE * SIDE, *hidden, 10)
        layers = [one for a, b in pairwise(widths) for one in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *layers[:-1])


def score(module: nn.Module, task: Task) -> float:
    return accuracy(module, task, task.test, SIDE)


def judged(rows: list[dict[str, float]], bits: list[int]) -> dict[str, object]:
    means = {key: round(statistics.mean(row[key] for row in rows), 4) for key in rows[0]}
    found: dict[str, object] = {"accuracy": means, "by_seed": rows}
    for few in bits:
        place = f"W{few}A{few}"
        gains = [row[f"{place} qad"] - row[f"{place} ptq"] for row in rows]
        gap = statistics.mean(row["float"] - row[f"{place} ptq"] for row in rows)
        closed, t = statistics.mean(gains) / gap if gap > 0 else math.inf, paired_t(gains)
        found[place] = {
            "gain": round(statistics.mean(gains), 4),
            "gap": round(gap, 4),
            "closed": round(closed, 3),
            "t": round(t, 2),
            "passed": closed >= SHARE and t > SIGNIFICANT,
        }
    return found


def paired_t(gains: list[float]) -> float:
    if len(gains) < 2:
        return 0.0
    spread = statistics.stdev(gains) / math.sqrt(len(gains))
    return statistics.mean(gains) / spread if spread else math.inf


if __name__ == "__main__":
    main()
