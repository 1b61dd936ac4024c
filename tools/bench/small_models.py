"""How well and how dearly is it found how many times as slow one small model is as another?

    python tools/bench/small_models.py [--models 50] [--load 0 2] [--truth-seconds 8] [--peers 50] [--long-peers 3]

Prints JSON: for each method what a model costs and how far the answer is from the truth, on a quiet machine and beside
processes that multiply matrices. The models are chains of convolutions that differ in kind, width, side and depth;
the first is the anchor, and what is asked of each other one is log(its latency / the anchor's): on one thread of
OpenVINO in fp32, inputs copied in and outputs copied out. Every method is given the same files.

    truth             edgekd's way by the wall clock, long and without load: half of it before everything else, half
                      after. It is one only where nothing else runs: hardly an inference of it is preempted then
    edgekd            a few models and the anchor alive together and timed in turns, in fresh processes each launch;
                      of the same samples, by the wall and the CPU clock as `edgekd check` compares a pair, and by the
                      lower decile of all undisturbed wall times
    benchmark_app     OpenVINO's, -t 2 and -t 60. It times inferences without the copies, so it is also judged by the
                      truth of that: what the same inference takes with them and without, unloaded
    pytest-benchmark  one session over all models, with its defaults
    plain loop        a fresh process a model, ten inferences to warm up, then two seconds
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

for _name in (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
):  # before numpy: a process of load is one busy thread
    os.environ[_name] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from stand import hogs, target_of  # noqa: E402

from edgekd.devices import Device, connect  # noqa: E402
from edgekd.timing.duet import (  # noqa: E402
    hodges_lehmann,
    pair_log_ratio,
    signed_rank_bounds,
    turn_times,
)
from edgekd.values.artifact import Artifact  # noqa: E402
from edgekd.values.gate import Clock  # noqa: E402
from edgekd.values.latency import Latency, Protocol  # noqa: E402
from edgekd.values.model import Engine, Model, Precision  # noqa: E402

BUDGET_S = 1.95  # of wall time a model, start-up of its processes and its share of the anchor included
GROUP = 7  # models that are alive together, and the anchor
QUICK = Protocol(launches=1, blocks=10, samples=8, warmup_ms=20.0, one_core=True)
LONG = Protocol(launches=1, blocks=16, samples=12, warmup_ms=40.0, one_core=True)
# us a layer and MACs a us, roughly
LAW = {"plain": (1.5, 1e5), "pointwise": (1.5, 1e5), "depthwise": (3.0, 7e4)}
OPENED = """
import json, statistics, sys, time
import numpy as np, openvino as ov

def opened(path):
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1,
                "INFERENCE_PRECISION_HINT": ov.Type.f32}
    request = ov.Core().compile_model(path, "CPU", settings).create_infer_request()
    tensor = request.get_input_tensor(0).data
    image = np.random.default_rng(0).random(tensor.shape, np.float32)

    def run():
        np.copyto(tensor, image)
        request.infer()
        return np.array(request.get_output_tensor(0).data)

    return run, request
"""
LOOP = """
run, request = opened(sys.argv[1])
for _ in range(10):
    run()
times, bare, start = [], [], time.perf_counter()
while time.perf_counter() - start < float(sys.argv[2]):
    before = time.perf_counter()
    run()
    times.append(1e3 * (time.perf_counter() - before))
    bare.append(request.latency)  # of the same inference, without the copies
print(json.dumps([statistics.median(times), statistics.mean(times), statistics.median(bare)]))
"""
PYTEST = """
import pytest

@pytest.mark.parametrize("path", PATHS)
def test_model(benchmark, path):
    run, _ = opened(path)
    benchmark(run)
"""
BENCHMARK_APP = """
import sys
sys.modules["openvino_telemetry"] = None  # nothing is to be reported to its maker
from openvino.tools.benchmark.main import main
main()
"""
SETTINGS = shlex.split("-d CPU -hint none -api sync -nireq 1 -nstreams 1 -nthreads 1 -infer_precision f32")

Logs = Mapping[str, float]  # log(model / anchor) by the model's name
Ask = Callable[[Path], Mapping[str, float]]
Pair = tuple[Latency, Latency]  # anchor and model, alive together
Pairs = dict[str, list[Pair]]  # by the model's name, one a launch


def by_wall(pairs: Sequence[Pair]) -> float:
    return hodges_lehmann([pair_log_ratio(*pair, Clock.WALL) for pair in pairs])


def by_cpu(pairs: Sequence[Pair]) -> float:
    return hodges_lehmann([pair_log_ratio(*pair, Clock.CPU) for pair in pairs])


def by_decile(pairs: Sequence[Pair]) -> float:
    """Compare the fast ends of all undisturbed wall times: sharing caches and cores with others only adds time."""
    anchor, model = (np.concatenate([one.undisturbed_ms for one in ones]) for ones in zip(*pairs))
    return math.log(np.percentile(model, 10) / np.percentile(anchor, 10))


WAYS = {"wall": by_wall, "CPU": by_cpu, "lower decile": by_decile}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a method says of the models, and what that took."""

    method: str
    seconds: float  # a model
    logs: Logs
    bounds: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)  # by model, by kind


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=50, help="the anchor is one of them")
    parser.add_argument("--load", type=int, nargs="+", default=[0, 2], help="processes that keep it busy")
    parser.add_argument("--truth-seconds", type=float, default=8.0, help="a model")
    parser.add_argument("--peers", type=int, default=50, help="models that other tools are given")
    parser.add_argument("--long-peers", type=int, default=3, help="models for benchmark_app -t 60")
    parser.add_argument("--pytest-benchmark-path", default="", help="folder that it is installed in")
    asked = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # or the load would outlive a bench that is killed
    with tempfile.TemporaryDirectory() as scratch, connect(target_of("openvino")) as device:
        engines = [small(Path(scratch) / f"{at:02}.onnx", at) for at in range(asked.models)]
        paths = [_path(engine) for engine in engines]
        halves = [_grouped(device, engines, LONG, asked.truth_seconds / 2, "truth")]
        quiet = {path.stem: loop(path, 0.5) for path in paths}
        found = {load: measured(device, engines, asked, load) for load in asked.load}
        halves.append(_grouped(device, engines, LONG, asked.truth_seconds / 2, "truth"))
    there = "installed" if _installed(asked.pytest_benchmark_path) else "not installed"
    print(json.dumps({"pytest-benchmark": there, **judged(halves, quiet, found)}, indent=1))


def measured(device: Device, engines: Sequence[Engine], asked: argparse.Namespace, load: int) -> list[Found]:
    """Ask edgekd and the other tools, one after the other, beside so many processes of load."""
    paths = [_path(engine) for engine in engines]
    few, long = paths[: asked.peers + 1], paths[: asked.long_peers + 1]  # the anchor comes first
    with hogs(load):
        time.sleep(5 if load else 0)  # until they are at it
        return [
            *edgekd(device, engines, f"load {load}: edgekd"),
            *alone("benchmark_app -t 2", few, lambda path: benchmark_app(path, 2)),
            *alone("benchmark_app -t 60", long, lambda path: benchmark_app(path, 60)),
            *pytest_benchmark(few, asked.pytest_benchmark_path),
            *alone("plain loop", few, lambda path: loop(path, 2.0), ("median", "mean")),
        ]


def edgekd(device: Device, engines: Sequence[Engine], what: str) -> list[Found]:
    """Measure within the budget; several estimates of the same samples, each with what intervals it may claim."""
    start = time.monotonic()
    found = _grouped(device, engines, QUICK, BUDGET_S, what)
    seconds = (time.monotonic() - start) / len(found)
    return [_estimated(way, found, seconds) for way in WAYS]


def _estimated(way: str, found: Pairs, seconds: float) -> Found:
    launches = {name: [WAYS[way]([pair]) for pair in pairs] for name, pairs in found.items()}
    apart = [one - statistics.mean(ones) for ones in launches.values() for one in ones]
    freedom = len(apart) - len(launches)
    spread = _root(apart) * math.sqrt(len(apart) / freedom) if freedom else math.inf
    logs, bounds = {}, {}
    for name, ones in launches.items():
        logs[name], reach = WAYS[way](found[name]), 1.96 * spread / math.sqrt(len(ones))
        bounds[name] = {"by the spread of all models' launches": (logs[name] - reach, logs[name] + reach)}
        if way == "wall":
            bounds[name]["signed rank of the rounds"] = signed_rank_bounds(_rounds(found[name]), 0.025)
    return Found(method=f"edgekd, {way}", seconds=seconds, logs=logs, bounds=bounds)


def _rounds(pairs: Sequence[Pair]) -> list[float]:
    turns = ((turn_times(one, Clock.WALL) for one in pair) for pair in pairs)
    return [math.log(own / of) for anchor, model in turns for of, own in zip(anchor, model)]


def _grouped(
    device: Device, engines: Sequence[Engine], protocol: Protocol, budget_s: float, what: str
) -> Pairs:
    """Launch each group beside the anchor, at least once, until the models so far have had their time."""
    anchor, *others = engines
    groups = math.ceil(len(others) / GROUP)
    found: Pairs = {}
    start, allowed_s, launches = time.monotonic(), 0.0, 0
    for group in (others[at::groups] for at in range(groups)):
        found.update({_path(engine).stem: [] for engine in group})
        allowed_s += budget_s * len(group)
        number = 0
        while not number or (time.monotonic() - start) * (launches + 1) / launches <= allowed_s:
            base, *rest = device.time([anchor, *group], replace(protocol, seed=number))
            for engine, latency in zip(group, rest):
                found[_path(engine).stem].append((base, latency))
            number, launches = number + 1, launches + 1
        _tell(f"{what}: {len(found)} models, {launches} launches, {time.monotonic() - start:.0f} s")
    return found


def alone(method: str, paths: Sequence[Path], ask: Ask, words: Sequence[str] = ("median",)) -> list[Found]:
    """Ask a tool for one model after the other; for none where the anchor would be the only one."""
    if len(paths) < 2:
        return []
    start, said = time.monotonic(), {}
    for path in paths:
        said[path.stem] = ask(path)
        if len(said) % 10 == 0 or path is paths[-1]:
            _tell(f"{method}: {len(said)} models, {time.monotonic() - start:.0f} s")
    seconds = (time.monotonic() - start) / len(paths)
    logs = {word: _relative({name: one[word] for name, one in said.items()}) for word in words}
    return [Found(method=f"{method}, {word}", seconds=seconds, logs=logs[word]) for word in words]


def benchmark_app(path: Path, seconds: int) -> dict[str, float]:
    """Return the median in ms; from what it prints, because its report rounds to 0.01 ms."""
    said = _python("-c", BENCHMARK_APP, "-m", str(path), "-t", str(seconds), *SETTINGS)
    number, unit = re.findall(r"Median:\s+([\d.]+) (ms|us)", said)[0]
    return {"median": float(number) / (1e3 if unit == "us" else 1)}


def loop(path: Path, seconds: float) -> dict[str, float]:
    """Return median and mean in ms, and the median of the same inferences without the copies."""
    said = json.loads(_python("-c", OPENED + LOOP, str(path), str(seconds)))
    return dict(zip(("median", "mean", "bare"), said))


def pytest_benchmark(paths: Sequence[Path], folder: str) -> list[Found]:
    """Run one session over all models; none where it is not installed."""
    if len(paths) < 2 or not _installed(folder):
        return []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        test, report = Path(scratch) / "test_models.py", Path(scratch) / "report.json"
        test.write_text(f"PATHS = {[str(path) for path in paths]}\n{OPENED}{PYTEST}")
        _python("-m", "pytest", "-q", "-c", os.devnull, f"--benchmark-json={report}", str(test), path=folder)
        ran = json.loads(report.read_text())["benchmarks"]
    seconds = (time.monotonic() - start) / len(paths)
    _tell(f"pytest-benchmark: {len(ran)} models, {seconds * len(paths):.0f} s")
    logs = _relative({Path(one["params"]["path"]).stem: one["stats"]["median"] for one in ran})
    return [Found(method="pytest-benchmark, median", seconds=seconds, logs=logs)]


def _installed(folder: str) -> bool:
    return PathFinder.find_spec("pytest_benchmark", [folder, *sys.path]) is not None


def _python(*arguments: str, path: str = "") -> str:
    command, environment = [sys.executable, *arguments], {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3600)
    if done.returncode:
        raise SystemExit(f"{arguments} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def _relative(times: Mapping[str, float]) -> Logs:
    (_, anchor), *others = times.items()
    return {name: math.log(one / anchor) for name, one in others}


def judged(
    halves: Sequence[Pairs], quiet: Mapping[str, Mapping[str, float]], found: Mapping[int, Sequence[Found]]
) -> dict[str, Any]:
    """Hold everything against the truth."""
    first, second = (
        {name: statistics.median(by_wall([pair]) for pair in pairs) for name, pairs in half.items()}
        for half in halves
    )
    deciles = {name: by_decile(pairs + halves[1][name]) for name, pairs in halves[0].items()}
    truth = {name: (log + second[name]) / 2 for name, log in first.items()}
    error = _root([(log - second[name]) / 2 for name, log in first.items()])
    copies = _relative({name: one["bare"] / one["median"] for name, one in quiet.items()})
    bare = {name: log + copies[name] for name, log in truth.items()}
    times_ms = sorted(one["median"] for one in quiet.values())
    every = [(load, one) for load, ones in found.items() for one in ones]
    errors = {
        name: {
            f"{load}: {one.method}": _percent(one.logs[name] - log) for load, one in every if name in one.logs
        }
        for name, log in truth.items()
    }
    return {
        "models, ms": [round(times_ms[at], 3) for at in (0, len(times_ms) // 2, -1)],
        "truth": {
            "launches a model": sum(len(pairs) for half in halves for pairs in half.values()) / len(truth),
            "preempted, %": _percent(_preempted(halves)),
            "standard error by its halves, %": _percent(error),
            "lower deciles are apart by, %": _percent(_root([deciles[name] - truth[name] for name in truth])),
        },
        "table": [row for load, one in every for row in _rows(load, one, truth, bare)],
        "95 % intervals": [_covered(load, one, truth) for load, one in every if one.bounds],
        "errors, %": errors,
    }


def _rows(load: int, one: Found, truth: Logs, bare: Logs) -> Iterator[dict[str, Any]]:
    yield _row(load, one, one.method, truth)
    if one.method.startswith("benchmark_app"):
        yield _row(load, one, f"{one.method}, by the truth without copies", bare)


def _row(load: int, one: Found, method: str, truth: Logs) -> dict[str, Any]:
    errors = [math.expm1(log - truth[name]) for name, log in one.logs.items()]
    return {
        "load": load,
        "method": method,
        "models": len(errors),
        "seconds a model": round(one.seconds, 2),
        "share within 1 %": round(statistics.mean(abs(error) <= 0.01 for error in errors), 3),
        "median error, %": _percent(float(np.median(np.abs(errors)))),
        "p90 error, %": _percent(float(np.percentile(np.abs(errors), 90))),
        "median signed error, %": _percent(float(np.median(errors))),
    }


def _covered(load: int, one: Found, truth: Logs) -> dict[str, Any]:
    """Say how often each interval holds the truth, and how wide it is."""
    said: dict[str, Any] = {"load": load, "method": one.method}
    for kind in next(iter(one.bounds.values())):
        bounds = {name: kinds[kind] for name, kinds in one.bounds.items()}
        held = statistics.mean(low <= truth[name] <= high for name, (low, high) in bounds.items())
        reach = statistics.median((high - low) / 2 for low, high in bounds.values())
        said[kind] = {"holds the truth": round(held, 3), "median reach, %": _percent(reach)}
    return said


def small(path: Path, number: int) -> Engine:
    """Write the model of that number: 0.1 to 3 ms on one core of a laptop or server."""
    rng = np.random.default_rng(number)
    kind, aim_us = ("plain", "depthwise", "plain", "pointwise")[number % 4], 10 ** rng.uniform(2.15, 3.4)
    depth = 0
    while not 3 <= depth <= 48:
        width, side = int(rng.choice((8, 16, 24, 32, 48, 64))), int(rng.choice((8, 12, 16, 20, 24, 32)))
        macs = width * side**2 * {"plain": 9 * width, "pointwise": width, "depthwise": width + 9}[kind]
        depth = round(aim_us / (LAW[kind][0] + macs / LAW[kind][1]))
    shapes = [(width, 3, 3, 3)]
    for _ in range(depth):
        shapes += [(width, 1, 3, 3)] if kind == "depthwise" else []
        shapes += [(width, width, 3, 3) if kind == "plain" else (width, width, 1, 1)]
    nodes, weights = [], []
    for at, shape in enumerate(shapes):
        kernel = rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{at}"))
        groups = width if shape[1] == 1 else 1
        pads = [shape[2] // 2] * 4
        nodes.append(helper.make_node("Conv", [f"x{at}", f"w{at}"], [f"y{at}"], pads=pads, group=groups))
        nodes.append(helper.make_node("Relu", [f"y{at}"], [f"x{at + 1}"]))
    nodes.append(helper.make_node("GlobalAveragePool", [f"x{len(shapes)}"], ["answer"]))
    image = helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, 3, side, side])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, [1, width, 1, 1])
    graph = helper.make_graph(nodes, f"{kind}-{width}-{side}-{depth}", [image], [answer], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return Engine(model=Model(file=Artifact.of(path)), runtime="openvino", precision=Precision.FP32)


def _path(engine: Engine) -> Path:
    return engine.model.file.path


def _preempted(halves: Sequence[Pairs]) -> float:
    pairs = (pair for half in halves for pairs in half.values() for pair in pairs)
    return statistics.mean(statistics.mean(model.preempted) for _, model in pairs)


def _root(values: Sequence[float]) -> float:
    return math.sqrt(statistics.mean(value**2 for value in values))


def _percent(share: float) -> float | None:
    return round(100 * share, 3) if math.isfinite(share) else None


def _tell(what: str) -> None:
    print(what, file=sys.stderr)


if __name__ == "__main__":
    main()
