"""edgekd's choice of runtime, precision and quantiser against an exhaustive search."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgekd.pipeline.forms import made, surveyed_of
from edgekd.pipeline.int8 import find_int8
from edgekd.pipeline.single import timed
from edgekd.stages.variants import structures, with_ranges
from edgekd.store import Store
from edgekd.store.journal import append, read
from edgekd.values.latency import Protocol
from edgekd.values.model import Engine, Precision
from edgekd.values.variant import Quantization, Tolerance
from tools.bench.quantization_stand import Stand, Student, judge_of, source, students

FULL = Protocol(launches=3, blocks=4, samples=100)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """One trained student: edgekd's choice beside the best of all forms."""

    name: str
    chosen: str
    best: str
    ratio: float  # of p50, in turns
    seconds: float
    exhaustive_seconds: float
    forms: int


def choice(stand: Stand, given: argparse.Namespace) -> dict[str, Any]:
    kept, end = stand.keep / "choice.jsonl", time.monotonic() + given.seconds
    done = {(one.name, "") for one in read(kept, Chosen)}
    names = {name for name, _ in done}
    for name, student in students(stand, given, set(), end):
        if name in names:
            continue
        one = _chosen(stand, name, student)
        append(kept, one)
        print(one, file=sys.stderr)
    found = read(kept, Chosen)
    return {
        "students": len(found),
        "within_2_percent": sum(one.ratio <= 1.02 for one in found),
        "ratio_worst": max((one.ratio for one in found), default=None),
        "share_of_exhaustive_time": [one.seconds / one.exhaustive_seconds for one in found],
        "each": [asdict(one) for one in found],
    }


def _chosen(stand: Stand, name: str, student: Student) -> Chosen:
    parents = [
        Engine(model=student.model, runtime=name, precision=precision)
        for name, precision in (
            ("onnxruntime", Precision.FP32), ("openvino", Precision.FP32), ("openvino", Precision.BF16),
        )
    ]  # fmt: skip
    began = time.monotonic()
    candidates = _allowed(stand, student, parents)
    for parent in (one for one in parents if one.precision is Precision.FP32):
        judge = judge_of(stand, student, parent)
        found = find_int8(source(stand, parent, student.rows, judge, Tolerance()))
        if found.best:
            candidates[f"{runtime_of(parent)}{found.best.quantization.name}"] = found.best.engine
    chosen = _fastest(stand, candidates)
    seconds = time.monotonic() - began
    began = time.monotonic()
    everything = _allowed(stand, student, parents)
    count = len(parents)
    fresh = replace(stand, store=Store(stand.keep / "exhaustive" / str(time.monotonic_ns())))
    for parent in parents[:2]:
        judge = judge_of(stand, student, parent)
        origin = source(fresh, parent, student.rows, judge, Tolerance())
        surveyed = surveyed_of(origin)
        for how in _every(parent.runtime):
            count += 1
            engine = made(origin, surveyed, how)
            stand.device.time([parent, engine], FULL)  # what an exhaustive search spends on each
            if Tolerance().allows(judge(engine)):
                everything[f"{runtime_of(parent)}{how.name}"] = engine
    best = _fastest(stand, everything)
    exhaustive = time.monotonic() - began
    own, other = timed(stand.device, [candidates[chosen], everything[best]], FULL)
    return Chosen(
        name=name,
        chosen=chosen,
        best=best,
        ratio=own.percentile(50) / other.percentile(50),
        seconds=seconds,
        exhaustive_seconds=exhaustive,
        forms=count,
    )


def runtime_of(engine: Engine) -> str:
    """Begin the name of a form."""
    return f"{engine.runtime}, "


def _allowed(stand: Stand, student: Student, parents: Sequence[Engine]) -> dict[str, Engine]:
    """Return the float forms that lose nothing."""
    judge = judge_of(stand, student, parents[0])
    return {
        one.name: one for one in parents if one.precision is Precision.FP32 or Tolerance().allows(judge(one))
    }


def _fastest(stand: Stand, engines: dict[str, Engine]) -> str:
    latencies = timed(stand.device, list(engines.values()), FULL)
    return min(zip(engines, latencies), key=lambda pair: pair[1].percentile(50))[0]


def _every(runtime: str) -> list[Quantization]:
    """Return all forms of a runtime: every structure with its switches thrown, every way to find ranges."""
    found: dict[Quantization, None] = {}
    for one in structures(runtime, ".onnx"):
        for per_channel, symmetric in itertools.product((True, False), (True, False)):
            if one.method.value == "nncf" and not per_channel:
                continue  # NNCF has no such switch
            structure = replace(one, per_channel=per_channel, symmetric=symmetric)
            found.update(dict.fromkeys(with_ranges(structure)))
    return list(found)
