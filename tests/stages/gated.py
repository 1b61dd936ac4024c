"""Pairs of small networks for the gate, on the rehearsal backend and in this process: no start-up, no sleep, no load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.devices import Device, connect
from edgekd.stages.compare import Rivals, Side
from edgekd.stages.configure import target_from
from edgekd.values.artifact import Artifact
from edgekd.values.job import TargetSection
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.target import Target
from tests.pipeline.rehearsed import WorkerHere

_SLOW = 60


def target() -> Target:
    return target_from(TargetSection(profile="rehearsal"), Path())


def rehearsal(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[Device]:
    """Give a device whose workers live here; the reference evaluator would take seconds for the shipped reference."""
    healthy = Model(file=Artifact.of(network(folder / "reference.onnx", seed=9)))
    patch.setattr("edgekd.devices.local.Child", WorkerHere)
    for module in ("compare", "baseline"):
        patch.setattr(f"edgekd.stages.{module}.reference", lambda: healthy)
    with connect(target()) as device:
        yield device


def network(path: Path, *, seed: int = 0, side: int = 8, **knobs: str) -> Path:
    """Write a convolution with weights of its own; knobs are the rehearsal's, such as slowdown="1.05".

    All are slowed down so that a turn is a handful of inferences: on a clock of its own, time costs nothing.
    """
    knobs["slowdown"] = str(_SLOW * float(knobs.get("slowdown", "1")))
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = np.random.default_rng(seed).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["maps"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["kept"]),
        helper.make_node("GlobalAveragePool", ["kept"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {f"rehearsal.{name}": value for name, value in knobs.items()})
    onnx.save(model, path)
    return path


def side(path: Path, runtime: str = "rehearsal") -> Side:
    engine = Engine(model=Model(file=Artifact.of(path)), runtime=runtime, precision=Precision.FP32)
    return Side(path=path.name, engine=engine)


def rivals(base: Path, candidate: Path) -> Rivals:
    return Rivals(name=candidate.name, base=side(base), candidate=side(candidate))
