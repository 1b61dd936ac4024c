"""Does the gate tell a slower model from an equal one, on a machine that is busy with something else?

    python tools/bench/gate.py [--gates 300] [--found 40] [--load 2] [--parts alarms,found,fine,throttle,overhead]

Prints JSON. Models are chains of equal convolutions, so that one block more in twenty is 5 % more work, and really
is work. Every gate is a whole comparison as `edgekd check` makes it, in fresh processes; the load is as many
processes that multiply matrices, which the bench starts and stops itself.

    alarms    a file against itself (--model, or a chain), ONNX Runtime and OpenVINO by turns, under load: how often is that a FAIL?
    found     one block more in twenty (+5 %), under load: how often is it found, and in how many pairs?
    fine      one block more in a hundred (+1 %) by the CPU clock at a margin of 0.5 %, and a file against itself
    throttle  one arm alone is slowed down and says so (rehearsal): 200 comparisons
    overhead  what sampling adds to the time of an inference that does nothing

The samples of `alarms` and `found` are also judged by other tools' rules, and by a stored baseline.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from gate_coverage import peers  # noqa: E402

from edgekd.devices import connect, local  # noqa: E402
from edgekd.stages import compare as stage  # noqa: E402
from edgekd.stages.compare import PAIRS, compare  # noqa: E402
from edgekd.stages.configure import target_from  # noqa: E402
from edgekd.stages.weigh import Rivals, Side  # noqa: E402
from edgekd.store.journal import read  # noqa: E402
from edgekd.timing import sampling  # noqa: E402
from edgekd.timing.duet import hodges_lehmann  # noqa: E402
from edgekd.values.artifact import Artifact  # noqa: E402
from edgekd.values.gate import Clock, Comparison, GateRules, GateVerdict, Pair  # noqa: E402
from edgekd.values.job import TargetSection  # noqa: E402
from edgekd.values.model import Engine, Model, Precision, Signature  # noqa: E402
from edgekd.worker.orders import Worker  # noqa: E402

RUNTIMES = ("onnxruntime", "openvino")
FINE = GateRules(margin=0.005, clock=Clock.CPU)
THROTTLED = 200
CHANNELS, SIDE = 16, 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gates", type=int, default=300, help="comparisons of a file with itself, under load"
    )
    parser.add_argument("--found", type=int, default=40, help="comparisons with a slower file")
    parser.add_argument("--load", type=int, default=2, help="processes that keep the machine busy")
    parser.add_argument("--model", type=Path, action="append", help="an .onnx for `alarms`, once each")
    parser.add_argument("--parts", default="alarms,found,fine,throttle,overhead")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    found: dict[str, Any] = {"load": arguments.load}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if "alarms" in parts:
            found["alarms"] = alarms(folder / "alarms", arguments.model, arguments.gates, arguments.load)
        if "found" in parts:
            found["found"] = slower(folder / "found", arguments.found, arguments.load)
        if "fine" in parts:
            found["fine"] = fine(folder / "fine", arguments.found)
        if "throttle" in parts:
            found["throttle"] = throttle(folder / "throttle")
        if "overhead" in parts:
            found["overhead"] = overhead()
    print(json.dumps(found, indent=1))


def alarms(folder: Path, paths: Sequence[Path] | None, gates: int, load: int) -> dict[str, Any]:
    models = [Model(file=Artifact.of(path.absolute())) for path in paths or ()]
    models = models or [chain(folder / "model.onnx", blocks=20)]
    with hogs(load):
        return {
            model.file.path.name: _judged(folder / str(at), model, model, gates // len(models), GateRules())
            for at, model in enumerate(models)
        }


def slower(folder: Path, gates: int, load: int) -> dict[str, Any]:
    base, candidate = chain(folder / "base.onnx", 20), chain(folder / "slower.onnx", 21)
    with hogs(load):
        return _judged(folder, base, candidate, gates, GateRules())


def fine(folder: Path, gates: int) -> dict[str, Any]:
    base, candidate = chain(folder / "base.onnx", 100), chain(folder / "slower.onnx", 101)
    return {
        "+1 %": _judged(folder / "slower", base, candidate, gates, FINE),
        "itself": _judged(folder / "itself", base, base, gates, FINE),
    }


def _judged(folder: Path, base: Model, candidate: Model, gates: int, rules: GateRules) -> dict[str, Any]:
    """Make so many comparisons, each in fresh processes, runtimes by turns."""
    made: list[Comparison] = []
    traces: list[tuple[Pair, ...]] = []
    with connect(_target(*RUNTIMES)) as device:
        for number in range(gates):
            runtime = RUNTIMES[number % len(RUNTIMES)]
            rivals = _rivals(base, candidate, runtime)
            own = replace(rules, seed=1000 * number)
            made.append(compare(folder / str(number), device, rivals, own, alpha=rules.alpha))
            traces.append(read(folder / str(number) / PAIRS, Pair))
            _tell(number + 1, gates, made)
    return {**_summary(made), "by other rules": others(traces), "spread": spread(traces)}


def _summary(made: Sequence[Comparison]) -> dict[str, Any]:
    verdicts = [one.verdict.value for one in made]
    failed = [one.pairs for one in made if one.verdict is GateVerdict.FAIL]
    return {
        "comparisons": len(made),
        "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "median pairs": statistics.median(one.pairs for one in made),
        "median pairs of a FAIL": statistics.median(failed) if failed else None,
        "median seconds": round(statistics.median(one.seconds for one in made), 1),
        "median estimate": round(statistics.median(one.ratio.estimate for one in made if one.ratio), 4),
        "scatter of a pair, %": round(
            100 * statistics.median(statistics.stdev(one.log_ratios) for one in made), 2
        ),
    }


def others(traces: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    """Let other tools' rules judge the same samples: the candidate's against the base's of the gate before.

    That is what a stored baseline is: a measurement of the base from another time.
    """
    stored, beside = [], []
    for before, now in zip(traces, traces[2:]):  # two on: the same runtime
        candidate = [np.array(pair.candidate.samples_ms) for pair in now]
        stored.append(peers([np.array(pair.base.samples_ms) for pair in before], candidate))
        beside.append(peers([np.array(pair.base.samples_ms) for pair in now], candidate))
    return {
        "share that fails, stored baseline": _shares(stored),
        "share that fails, base of the same pairs": _shares(beside),
    }


def _shares(verdicts: Sequence[dict[str, bool]]) -> dict[str, float]:
    return {
        name: round(statistics.mean(one[name] for one in verdicts), 3)
        for name in (verdicts[0] if verdicts else ())
    }


def spread(traces: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    """Compare how much an estimate scatters from gate to gate, at equal samples: by pairs, and by a stored median."""
    found: dict[str, Any] = {}
    for at, runtime in enumerate(RUNTIMES):
        own = [trace for trace in traces[at :: len(RUNTIMES)] if trace]
        if len(own) < 3:
            continue
        paired = [hodges_lehmann([_log_ratio(pair) for pair in trace]) for trace in own]
        alone = [
            math.log(statistics.median(ms for pair in trace for ms in pair.candidate.samples_ms))
            for trace in own
        ]
        found[runtime] = {
            "pairs, %": round(100 * statistics.stdev(paired), 3),
            "stored median, %": round(100 * statistics.stdev(alone), 3),
            "ratio": round(statistics.stdev(alone) / statistics.stdev(paired), 1),
        }
    return found


def _log_ratio(pair: Pair) -> float:
    from edgekd.timing.duet import pair_log_ratio

    return pair_log_ratio(pair.base, pair.candidate, Clock.WALL)


def throttle(folder: Path) -> dict[str, Any]:
    """Slow one arm alone, on the rehearsal backend, in this process: nothing of it may be called a regression."""
    slow = {
        "slowdown": "40"
    }  # a turn is then a handful of inferences; time costs nothing on a clock of its own
    base = chain(folder / "base.onnx", 4, slow)
    local.Child = WorkerHere  # type: ignore[misc, assignment]
    stage.reference = lambda: base  # the reference evaluator takes seconds for the shipped one
    verdicts: list[str] = []
    with connect(_target("rehearsal", profile="rehearsal")) as device:
        for number in range(THROTTLED):
            hot = chain(folder / f"hot{number}.onnx", 4, {**slow, "throttle": f"{2 + number % 4}:1.4"})
            rivals = _rivals(base, hot, "rehearsal")
            rules = GateRules(seed=number)
            found = compare(folder / str(number), device, rivals, rules, alpha=rules.alpha)
            verdicts.append(found.verdict.value)
    return {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}


def overhead() -> dict[str, Any]:
    """Sample an inference that does nothing: what is recorded is the harness."""
    session = Nothing()
    taken = [sampling.sample(session, [{}] * 8, 2000).wall_ns for _ in range(5)]
    empty = statistics.median(ns for run in taken for ns in run)
    return {"a null inference is recorded as, us": empty / 1e3}


class Nothing:
    """A session that does nothing."""

    real_time = True
    signature = Signature(inputs=(), outputs=())

    def run(self, _: Any) -> dict[str, Any]:
        return {}

    def throttle_count(self) -> int:
        return 0

    def clock_ns(self) -> int:
        return time.perf_counter_ns()

    def cpu_clock_ns(self) -> int:
        return time.thread_time_ns()


class WorkerHere:
    """A worker in this process: the same orders, no wire and no start-up."""

    def __init__(self, *_: object, **__: object) -> None:
        self._handlers = Worker().handlers()

    def ask(self, name: str, order: Any, *_: object, **__: object) -> Any:
        return self._handlers[name].carry_out(order)

    def close(self) -> None:
        """Nothing to end."""

    def __enter__(self) -> WorkerHere:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""


def chain(path: Path, blocks: int, rehearsed: dict[str, str] | None = None) -> Model:
    """Write a chain of equal 3x3 convolutions with the same weights, and how it is to be rehearsed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    kernel = rng.normal(0, 1 / math.sqrt(9 * CHANNELS), (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    bias = np.full(
        CHANNELS, 0.1, np.float32
    )  # or a long chain would end in numbers too small to be computed fast
    nodes = []
    for at in range(blocks):
        nodes.append(helper.make_node("Conv", [f"x{at}", "kernel", "bias"], [f"y{at}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"y{at}"], [f"x{at + 1}"]))
    shape = [1, CHANNELS, SIDE, SIDE]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{blocks}", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if rehearsed:
        helper.set_model_props(model, {f"rehearsal.{name}": value for name, value in rehearsed.items()})
    onnx.save(model, path)
    return Model(file=Artifact.of(path))


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """Keep the machine busy with processes that multiply matrices."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # one hog, one core
    with ExitStack() as stack:
        for _ in range(count):
            process = multiprocessing.get_context("spawn").Process(target=_hog, daemon=True)
            process.start()
            stack.callback(process.terminate)
        yield


def _hog() -> None:
    os.setsid()  # Linux shares its cores out by session: hogs of ours would stand back for the workers
    matrix, parent = np.random.default_rng(0).random((300, 300)), os.getppid()
    while os.getppid() == parent:  # a bench that was killed must not leave its load behind
        matrix = matrix @ matrix
        matrix /= np.abs(matrix).max()


def _rivals(base: Model, candidate: Model, runtime: str) -> Rivals:
    sides = [
        Side(path=model.file.path.name, engine=Engine(model=model, runtime=runtime, precision=Precision.FP32))
        for model in (base, candidate)
    ]
    return Rivals(name=candidate.file.path.name, base=sides[0], candidate=sides[1])


def _target(*runtimes: str, profile: str = "x86-cpu") -> Any:
    return target_from(TargetSection(profile=profile, runtimes=runtimes, threads=1), Path())


def _tell(number: int, gates: int, made: Sequence[Comparison]) -> None:
    fails = sum(one.verdict is GateVerdict.FAIL for one in made)
    last = made[-1]
    print(
        f"{number}/{gates}: {last.verdict.value} {last.pairs} pairs {last.seconds:.0f} s; {fails} FAIL so far",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
