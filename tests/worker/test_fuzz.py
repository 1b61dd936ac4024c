"""Mutated models through real device children: the parent survives every one, and each gets an answer."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
import pytest

from edgekd.errors import IntegrityError, ModelError, WorkerDied
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.order import OpenOrder, OpenReply
from edgekd.wire import Child
from tests.contracts import models

SOURCES = [models.conv_net, models.quantized_net, models.fused_outputs, models.recurrent_cell]
ABSURD = [-1, 0, 1, 2, 1 << 15, (1 << 31) - 1, 1 << 40, (1 << 63) - 1]


def bytes_changed(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content[: rng.randint(1, len(content))] if rng.random() < 0.2 else content)


def structure_changed(rng: random.Random, path: Path) -> None:
    model = onnx.load(str(path))
    node = rng.choice(model.graph.node)
    kind = rng.randrange(7)
    if kind == 0:
        del node.input[-1]
    elif kind == 1 and node.attribute:
        attribute = rng.choice(node.attribute)
        for at in range(len(attribute.ints)):
            attribute.ints[at] = rng.choice(ABSURD)
        attribute.i = rng.choice(ABSURD)
    elif kind == 2:
        node.op_type = rng.choice(["Conv", "MaxPool", "Gemm", "Gather", "Nothing", ""])
    elif kind == 3:
        tensor = rng.choice(model.graph.initializer)
        tensor.dims[:] = [rng.choice(ABSURD) for _ in tensor.dims]
    elif kind == 4:
        dim = rng.choice(rng.choice(model.graph.input).type.tensor_type.shape.dim)
        dim.dim_value = rng.choice(ABSURD)
    elif kind == 5:
        node.input[0] = rng.choice(node.output)  # a loop
    else:
        model.graph.node.reverse()
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_no_mutated_model_harms_the_parent_or_the_worker(runtime: str, tmp_path: Path):
    rng = random.Random(5)  # noqa: S311 - a test that repeats itself
    answers = {"opened": 0, "refused": 0, "died": 0}
    child = Child("edgekd.worker", memory_mib=2048, threads=1)
    try:
        for case in range(100):
            path = rng.choice(SOURCES)(tmp_path / f"{case}.onnx")
            rng.choice([bytes_changed, structure_changed])(rng, path)
            engine = Engine(model=Model(file=Artifact.of(path)), runtime=runtime, precision=Precision.FP32)
            try:
                child.ask("open", OpenOrder(engine=engine), OpenReply, timeout_s=20)
                answers["opened"] += 1
            except WorkerDied:
                answers["died"] += 1
                child.close()
                child = Child("edgekd.worker", memory_mib=2048, threads=1)
            except (ModelError, IntegrityError):
                answers["refused"] += 1
    finally:
        child.close()
    assert answers["died"] == 0, answers
    assert answers["opened"] >= 3, answers
    assert answers["refused"] >= 40, answers
