"""Does quantisation lose anything? Speed and accuracy of what ships in int8, and the choice against an exhaustive search.

    python tools/bench/quantization.py shipped --keep DIR [--students 30] [--models FOLDER]
    python tools/bench/quantization.py accuracy --keep DIR [--students 20] [--data digits] [--data NAME.npz] [--epochs 3]
    python tools/bench/quantization.py choice --keep DIR [--students 2]

Prints JSON. Each student or model is one line of DIR/PART.jsonl once it is done: stopped at any moment, the same command
goes on. `shipped`: untrained students of all sizes, and every .onnx of a folder on random inputs; accuracy is left out
of it, so that as many int8 files ship as can. What won its race is raced again in other processes with other inputs.
`accuracy`: students trained for some epochs on labels; int8 as edgekd ships it, judged on the test images, which chose
nothing. Peers from the same float file and calibration rows: NNCF's default, NNCF with accuracy control (a drop of at
most 0.1 points on the validation images, its defaults otherwise), ONNX Runtime's static default. `choice`: every form of
every runtime measured in full; edgekd's choice is timed in turns with the best of them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from edgekd.devices import connect  # noqa: E402
from edgekd.errors import EdgekdError, ModelError  # noqa: E402
from edgekd.pipeline.int8 import find_int8  # noqa: E402
from edgekd.pipeline.single import check_shapes, outputs_of, timed  # noqa: E402
from edgekd.stages.export import export  # noqa: E402
from edgekd.stages.lost import lost  # noqa: E402
from edgekd.stages.quantize import Quantizers  # noqa: E402
from edgekd.stages.race import race  # noqa: E402
from edgekd.store import Store  # noqa: E402
from edgekd.store.journal import append, read  # noqa: E402
from edgekd.students import space_for  # noqa: E402
from edgekd.timing.sampling import varied_inputs  # noqa: E402
from edgekd.values.artifact import Artifact  # noqa: E402
from edgekd.values.latency import Protocol  # noqa: E402
from edgekd.values.model import Engine, Model, Precision  # noqa: E402
from edgekd.values.variant import Loss, Tolerance  # noqa: E402
from tools.bench.quantization_choice import choice  # noqa: E402
from tools.bench.quantization_peers import PEERS  # noqa: E402
from tools.bench.quantization_stand import (  # noqa: E402
    Stand,
    Student,
    answers,
    drawn,
    judge_of,
    source,
    students,
)
from tools.bench.stand import target_of  # noqa: E402

RUNTIMES = ("onnxruntime", "openvino")
ANY = Tolerance(drop=math.inf, changed=1.0, divergence=math.inf)
ROWS = 256
FULL = Protocol(launches=3, blocks=4, samples=100)


@dataclass(frozen=True, kw_only=True)
class Raced:
    """One model on one runtime: what shipped, and what an independent race says of it."""

    name: str
    runtime: str
    form: str  # empty: nothing shipped
    ratio: float | None = None  # of the second race: times as slow as fp32
    low: float | None = None
    high: float | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """One trained student: test metric of its float file and of int8 files, by who made them."""

    name: str
    data: str
    test_samples: int
    metric: float
    drops: dict[str, float]  # in points
    faster: dict[str, float]  # times as fast as fp32 on the same runtime
    forms: dict[str, str]
    seconds: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("shipped", "accuracy", "choice"))
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--students", type=int, default=30)
    parser.add_argument("--models", type=Path, help="a folder of .onnx files")
    parser.add_argument("--data", action="append", help="NAME or KIND:PATH; digits unless given")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--most", type=int, default=8000, help="images that a student is trained on")
    parser.add_argument("--most-test", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=240.0, help="after which nothing new is begun")
    given = parser.parse_args()
    given.keep.mkdir(parents=True, exist_ok=True)
    try:
        with connect(target_of(*RUNTIMES)) as device, Quantizers() as quantizers:
            stand = Stand(
                keep=given.keep, device=device, quantizers=quantizers, store=Store(given.keep / "store")
            )
            print(json.dumps(PARTS[given.part](stand, given), indent=1))
    except EdgekdError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


# --- shipped


def shipped(stand: Stand, given: argparse.Namespace) -> dict[str, Any]:
    kept, end = stand.keep / "shipped.jsonl", time.monotonic() + given.seconds
    done = {(one.name, one.runtime) for one in read(kept, Raced)}
    for name, model in _models(stand, given):
        for runtime in RUNTIMES:
            if (name, runtime) in done or time.monotonic() > end:
                continue
            one = _raced(stand, name, Engine(model=model, runtime=runtime, precision=Precision.FP32))
            append(kept, one)
            print(one, file=sys.stderr)
    found = read(kept, Raced)
    ratios = [one.ratio for one in found if one.ratio is not None]
    return {
        "models": len({one.name for one in found}),
        "files": len(found),
        "shipped_int8": len(ratios),
        "slower_than_parent": sum(ratio > 1 for ratio in ratios),
        "surely_slower": sum(one.low is not None and one.low > 1 for one in found),
        "ratio_median": statistics.median(ratios) if ratios else None,
        "ratio_worst": max(ratios, default=None),
        "by_runtime": {
            name: sum(one.runtime == name and one.ratio is not None for one in found) for name in RUNTIMES
        },
        "not_shipped": {f"{one.name} {one.runtime}": one.why for one in found if one.ratio is None},
    }


def _models(stand: Stand, given: argparse.Namespace) -> Iterator[tuple[str, Model]]:
    if given.models:
        for path in sorted(given.models.glob("*.onnx")):
            yield path.stem, Model(file=Artifact.of(path))
    space = space_for(resolution=32, channels=3, classes=10)
    for spec in drawn(space, given):
        yield str(spec), stand.store.run(export, spec, 3, 10, None)


def _raced(stand: Stand, name: str, parent: Engine) -> Raced:
    rows = _random_rows(stand, parent)
    expected = outputs_of(stand.device, parent, rows, stand.keep / "outputs" / "parent")

    def judge(engine: Engine) -> Loss:
        return lost(expected, outputs_of(stand.device, engine, rows, stand.keep / "outputs" / "own"))

    try:
        found = find_int8(source(stand, parent, rows, judge, ANY))
    except ModelError as error:
        return Raced(name=name, runtime=parent.runtime, form="", why=str(error)[:300])
    if found.best is None:
        return Raced(name=name, runtime=parent.runtime, form="", why=found.why)
    again = race(stand.device, parent, found.best.engine, about_ms=found.best.parent_ms, seed=1000)
    return Raced(
        name=name,
        runtime=parent.runtime,
        form=found.best.quantization.name,
        ratio=again.estimate,
        low=again.low,
        high=again.high,
    )


def _random_rows(stand: Stand, parent: Engine) -> dict[str, Artifact]:
    signature = check_shapes(stand.device.inspect(parent.model.file), {})
    folder = stand.keep / "inputs" / parent.model.file.sha256[:16]
    folder.mkdir(parents=True, exist_ok=True)
    rows, kept = varied_inputs(signature, seed=0, count=16), {}
    for at, spec in enumerate(signature.inputs):
        np.save(folder / f"{at}.npy", np.stack([row[spec.name] for row in rows]))
        kept[spec.name] = Artifact.of(folder / f"{at}.npy")
    return kept


# --- accuracy


def accuracy(stand: Stand, given: argparse.Namespace) -> dict[str, Any]:
    kept, end = stand.keep / "accuracy.jsonl", time.monotonic() + given.seconds
    done = {(one.name, one.data) for one in read(kept, Dropped)}
    for name, student in students(stand, given, done, end):
        one = _dropped(stand, name, student)
        append(kept, one)
        print(one, file=sys.stderr)
    found = read(kept, Dropped)
    return {
        data: _summary([one for one in found if one.data == data])
        for data in dict.fromkeys(one.data for one in found)
    }


def _summary(found: Sequence[Dropped]) -> dict[str, Any]:
    makers = dict.fromkeys(name for one in found for name in one.drops)
    drops = {name: [one.drops[name] for one in found if name in one.drops] for name in makers}
    return {
        "students": len(found),
        "test_samples": found[0].test_samples,
        "float_metric_mean": statistics.fmean(one.metric for one in found),
        "drop_points": {
            name: {
                "files": len(values),
                "mean": statistics.fmean(values),
                "mean_absolute": statistics.fmean(abs(value) for value in values),
                "worst": max(values),
            }
            for name, values in drops.items()
        },
        "times_as_fast": {
            name: statistics.median([one.faster[name] for one in found if name in one.faster])
            for name in makers
            if any(name in one.faster for one in found)
        },
        "seconds_mean": {
            name: statistics.fmean([one.seconds[name] for one in found if name in one.seconds])
            for name in makers
        },
        "files_shipped_in_int8": sum(bool(form) for one in found for form in one.forms.values()),
    }


def _dropped(stand: Stand, name: str, student: Student) -> Dropped:
    task = student.task
    drops, faster, forms, seconds = {}, {}, {}, {}
    metric = 0.0
    for runtime in RUNTIMES:
        parent = Engine(model=student.model, runtime=runtime, precision=Precision.FP32)
        metric = task.score(answers(stand, student, parent, "test"), task.test.labels)
        began = time.monotonic()
        found = find_int8(source(stand, parent, student.rows, judge_of(stand, student, parent), Tolerance()))
        label = f"edgekd, {runtime}"
        seconds[label] = time.monotonic() - began
        engines = {label: found.best.engine} if found.best else {}
        forms[label] = found.best.quantization.name if found.best else ""
        for peer, make in PEERS[runtime].items():
            began = time.monotonic()
            folder = stand.keep / "peers" / parent.model.file.sha256[:16]
            folder.mkdir(parents=True, exist_ok=True)
            engine = make(folder, student, parent)
            seconds[peer] = time.monotonic() - began
            if engine is not None:
                engines[peer] = engine
        for who, engine in engines.items():
            own = task.score(answers(stand, student, engine, "test"), task.test.labels)
            drops[who] = 100 * (metric - own)
        base, *own_ms = (one.percentile(50) for one in timed(stand.device, [parent, *engines.values()], FULL))
        faster.update({who: base / ms for who, ms in zip(engines, own_ms)})
    return Dropped(
        name=name,
        data=task.name,
        test_samples=len(task.test),
        metric=metric,
        drops=drops,
        faster=faster,
        forms=forms,
        seconds=seconds,
    )


PARTS = {"shipped": shipped, "accuracy": accuracy, "choice": choice}

if __name__ == "__main__":
    main()
