"""What the benches of measuring stand on: models of a known amount of work, a busy machine, a target."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekd.stages.configure import target_from
from edgekd.stages.weigh import Rivals, Side
from edgekd.values.artifact import Artifact
from edgekd.values.job import TargetSection
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.target import Target

CHANNELS, SIDE = 16, 20


def chain(path: Path, blocks: int, rehearsed: dict[str, str] | None = None, side: int = SIDE) -> Model:
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
    shape = [1, CHANNELS, side, side]
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


def rivals_of(base: Model, candidate: Model, runtime: str) -> Rivals:
    sides = [
        Side(path=model.file.path.name, engine=Engine(model=model, runtime=runtime, precision=Precision.FP32))
        for model in (base, candidate)
    ]
    return Rivals(name=candidate.file.path.name, base=sides[0], candidate=sides[1])


def target_of(*runtimes: str, profile: str = "x86-cpu") -> Target:
    return target_from(TargetSection(profile=profile, runtimes=runtimes, threads=1), Path())
