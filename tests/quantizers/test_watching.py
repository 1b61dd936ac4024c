"""A model's layers are listed, seen and replaced, in a child, whatever the graph computes in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd import backends
from edgekd.errors import ModelError
from edgekd.stages.looking import Form, Workshop, see
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.watch import Cut, GraphReply, WatchOrder
from tests.contracts import models


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with Workshop() as made:
        yield made


def model_of(path: Path, precision: Precision = Precision.FP32) -> Model:
    weights = path.with_suffix(".bin")
    beside = Artifact.of(weights) if path.suffix == ".xml" else None
    return Model(file=Artifact.of(path), weights=beside, precision=precision)


def rows_of(folder: Path, **arrays: np.ndarray) -> dict[str, Artifact]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: Artifact.of(folder / f"{name}.npy") for name in arrays}


def running(runtime: str) -> Any:
    def run(model: Model, rows: dict[str, Artifact], folder: Path) -> dict[str, np.ndarray]:
        engine = Engine(model=model, runtime=runtime, precision=model.precision)
        arrays = {name: np.load(file.path) for name, file in rows.items()}
        with backends.load(runtime).open(engine) as session:
            count = len(next(iter(arrays.values())))
            found = [session.run({name: array[at] for name, array in arrays.items()}) for at in range(count)]
        return {name: np.stack([row[name] for row in found]) for name in found[0]}

    return run


def form_of(model: Model, runtime: str, workshop: Workshop) -> Form:
    run = workshop.define if runtime == "numpy" else running(runtime)
    return Form(name="it", model=model, run=run, shapes={})


def images(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).random((count, 1, 3, 8, 8), np.float32)


def as_ir(path: Path) -> Path:
    import openvino

    target = path.with_suffix(".xml")
    openvino.save_model(openvino.convert_model(str(path)), target, compress_to_fp16=False)
    return target


def halved(path: Path) -> Path:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    half = convert_float_to_float16(onnx.load(str(path)), keep_io_types=True)
    OnnxModel.graph_topological_sort(half.graph)
    onnx.save(half, str(path))
    return path


def operators(reply: GraphReply) -> list[str]:
    return [one.operator for one in reply.layers]


def test_layers_are_listed_in_order_and_weights_are_none(workshop: Workshop, tmp_path: Path):
    reply = workshop.graph(model_of(models.conv_net(tmp_path / "m.onnx")), {})
    assert operators(reply) == ["Conv", "Relu", "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert [one.tensor for one in reply.layers[:2]] == ["c1", "r1"]
    assert reply.layers[1].inputs == ("c1",)
    assert reply.layers[0].elements == 8 * 8 * 8
    assert not reply.problems


def test_a_dynamic_dimension_is_known_where_its_shape_is_given(workshop: Workshop, tmp_path: Path):
    model = model_of(models.conv_net(tmp_path / "m.onnx", batch="n"))
    assert workshop.graph(model, {}).layers[0].elements is None
    assert workshop.graph(model, {"image": (2, 3, 8, 8)}).layers[0].elements == 2 * 8 * 8 * 8


def test_the_layers_of_an_ir_are_listed_too(workshop: Workshop, tmp_path: Path):
    reply = workshop.graph(model_of(as_ir(models.conv_net(tmp_path / "m.onnx"))), {})
    assert operators(reply)[:2] == ["Convolution", "Relu"]
    assert reply.layers[0].elements == 8 * 8 * 8


@pytest.mark.parametrize("runtime", ["numpy", "onnxruntime", "openvino"])
def test_what_a_layer_gives_is_seen_and_can_be_replaced(workshop: Workshop, tmp_path: Path, runtime: str):
    form = form_of(model_of(models.conv_net(tmp_path / "m.onnx")), runtime, workshop)
    layers = [one for one in workshop.graph(form.model, {}).layers if one.tensor in {"c1", "r1", "logits"}]
    rows = rows_of(tmp_path / "in", image=images())
    first, rectified, logits = see(workshop, form, layers, rows, folder=tmp_path / "seen")
    assert np.allclose(rectified.values, np.maximum(first.values, 0))
    given = {"c1": first.values + 1}
    again, after, other = see(workshop, form, layers, rows, folder=tmp_path / "cut", given=given)
    assert np.allclose(again.values, first.values)  # it is still what the layer itself gives
    assert np.allclose(after.values, np.maximum(first.values + 1, 0), atol=1e-6)
    assert not np.allclose(other.values, logits.values, atol=1e-3)


@pytest.mark.parametrize("kind", ["ir", "fp16"])
def test_other_formats_and_types_are_seen_in_float32(workshop: Workshop, tmp_path: Path, kind: str):
    path = models.conv_net(tmp_path / "m.onnx")
    model = model_of(as_ir(path)) if kind == "ir" else model_of(halved(path))
    form = form_of(model, "openvino" if kind == "ir" else "onnxruntime", workshop)
    rows = rows_of(tmp_path / "in", image=images())
    kinds = {"Conv", "Convolution", "Relu"}
    layers = [one for one in workshop.graph(model, {}).layers if one.operator in kinds][:2]
    first, rectified = see(workshop, form, layers, rows, folder=tmp_path / "seen")
    assert first.values.dtype == np.float32
    assert np.allclose(rectified.values, np.maximum(first.values, 0), atol=1e-3)
    given = {layers[0].tensor: np.ones_like(first.values)}
    _, after = see(workshop, form, layers, rows, folder=tmp_path / "cut", given=given)
    assert np.array_equal(after.values, np.ones_like(first.values))


def quantised_chain(path: Path) -> Path:
    """Image, quantised; a convolution in integers; its result, quantised by scales of its own; a ReLU of that."""
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["qi"]),
        helper.make_node("QLinearConv", ["qi", "s", "z", "w", "ws", "wz", "os", "oz"], ["qc"]),
        helper.make_node("DequantizeLinear", ["qc", "os", "oz"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    scalars = {"s": np.float32(1 / 255), "z": np.uint8(0), "ws": np.float32(0.01), "wz": np.int8(0)}
    constants = {
        **{name: np.asarray(value) for name, value in scalars.items()},
        "os": np.asarray(np.float32(0.05)), "oz": np.asarray(np.uint8(128)),
        "w": np.random.default_rng(0).integers(-90, 90, (4, 3, 1, 1)).astype(np.int8),
    }  # fmt: skip
    return models.save(
        path, nodes, {"image": (TensorProto.FLOAT, (1, 3, 8, 8))}, {"y": (1, 4, 8, 8)}, constants
    )


def test_integers_are_seen_and_replaced_through_their_own_scale(workshop: Workshop, tmp_path: Path):
    form = form_of(model_of(quantised_chain(tmp_path / "m.onnx"), Precision.INT8), "onnxruntime", workshop)
    layers = {one.tensor: one for one in workshop.graph(form.model, {}).layers}
    rows = rows_of(tmp_path / "in", image=images(1))
    integers, floats = see(workshop, form, [layers["qc"], layers["c"]], rows, folder=tmp_path / "seen")
    assert np.allclose(integers.values, floats.values)
    given = {"qc": np.full_like(integers.values, 0.52)}  # 0.5 is the nearest that 0.05 goes into
    (after,) = see(workshop, form, [layers["y"]], rows, folder=tmp_path / "cut", given=given)
    assert np.allclose(after.values, 0.5)


def branching(path: Path) -> Path:
    """A ReLU, and an If that reads it from outside."""
    inner = [
        helper.make_graph(
            [helper.make_node(operation, ["r"], [f"{operation}.out"])], operation, [],
            [helper.make_tensor_value_info(f"{operation}.out", TensorProto.FLOAT, (1, 4))],
        )
        for operation in ("Neg", "Exp")
    ]  # fmt: skip
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("ReduceSum", ["r"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["condition"]),
        helper.make_node("If", ["condition"], ["y"], then_branch=inner[0], else_branch=inner[1]),
    ]
    shapes = {"x": (TensorProto.FLOAT, (1, 4))}
    return models.save(path, nodes, shapes, {"y": (1, 4)}, {"zero": np.float32(0).reshape(())})


def test_control_flow_is_one_layer_and_is_said(workshop: Workshop, tmp_path: Path):
    model = model_of(branching(tmp_path / "m.onnx"))
    reply = workshop.graph(model, {})
    assert operators(reply)[-1] == "If"
    assert any("control flow" in problem for problem in reply.problems)
    relu = reply.layers[0]
    assert not relu.cuttable  # a graph inside reads it
    form, rows = (
        form_of(model, "onnxruntime", workshop),
        rows_of(tmp_path / "in", x=np.ones((1, 1, 4), np.float32)),
    )
    (seen,) = see(workshop, form, [reply.layers[-1]], rows, folder=tmp_path / "seen")
    assert np.array_equal(seen.values, -np.ones((1, 1, 4), np.float32))
    with pytest.raises(ModelError, match="cannot be taken apart"):
        see(workshop, form, [relu], rows, folder=tmp_path / "cut", given={"r": seen.values})


def test_local_functions_are_looked_into(workshop: Workshop, tmp_path: Path):
    function = helper.make_function(
        "mine",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        [helper.make_node("Twice", ["x"], ["t"], domain="mine"), helper.make_node("Relu", ["t"], ["y"])], "g",
        *([helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4))] for name in ("x", "y")),
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert operators(workshop.graph(model_of(tmp_path / "m.onnx"), {})) == ["Add", "Relu"]


@pytest.mark.parametrize("content", [b"", b"\x08\xff" * 40, b"not a model"])
def test_bytes_that_are_no_model_are_a_model_error(workshop: Workshop, tmp_path: Path, content: bytes):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        workshop.graph(model_of(path), {})


def test_a_tensor_that_is_not_there_is_a_model_error(workshop: Workshop, tmp_path: Path):
    model = model_of(models.conv_net(tmp_path / "m.onnx"))
    for order in (
        WatchOrder(model=model, folder=tmp_path / "a", tensors=("nowhere",)),
        WatchOrder(model=model, folder=tmp_path / "b", tensors=(), cuts=(Cut(tensor="w1", shape=(1,)),)),
    ):
        with pytest.raises(ModelError, match="cannot be taken apart"):
            workshop.watch(order)


def test_a_copy_can_be_read_by_whoever_reads_the_model(workshop: Workshop, tmp_path: Path):
    path = models.conv_net(tmp_path / "m.onnx")
    order = WatchOrder(model=model_of(path), folder=tmp_path / "copy", tensors=("c1", "logits"))
    reply = workshop.watch(order)
    copy = onnx.load(str(reply.model.file.path))
    onnx.checker.check_model(copy, full_check=True)
    assert [value.name for value in copy.graph.output] == ["logits", *reply.outputs.values()]
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in copy.graph.initializer}
    assert np.array_equal(kept["w1"], models.weights(8, 3, 3, 3))


def test_what_numpy_has_no_definition_of_is_a_model_error(workshop: Workshop, tmp_path: Path):
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=opsets, ir_version=8
    )
    onnx.save(model, str(tmp_path / "m.onnx"))
    rows = rows_of(tmp_path / "in", x=np.ones((1, 1, 4), np.float32))
    with pytest.raises(ModelError, match="cannot be computed in numpy"):
        workshop.define(model_of(tmp_path / "m.onnx"), rows, tmp_path / "out")
