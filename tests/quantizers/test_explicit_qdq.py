from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd import backends
from edgekd.errors import ModelError
from edgekd.quantizers import explicit_qdq
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.order import QuantizeOrder
from tests.contracts import models

IMAGE = {"image": (TensorProto.FLOAT, (1, 3, 8, 8))}
PAIR = ("QuantizeLinear", "DequantizeLinear")


def residual_net(path: Path, *, projected: bool = False) -> Path:
    """A block whose shortcut is its input, or a 1x1 convolution of it; then a pool and a classifier."""
    weights = {
        "w0": models.weights(8, 3, 3, 3), "b0": models.weights(8), "w1": models.weights(8, 8, 3, 3, seed=1),
        "w2": models.weights(8, 8, 3, 3, seed=2), "w3": models.weights(8, 8, 1, 1, seed=3),
        "w4": models.weights(5, 8, seed=4), "b4": models.weights(5, seed=5),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "w0", "b0"], ["c0"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["x"], name="relu0"),
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
    ]
    if projected:
        nodes.append(helper.make_node("Conv", ["x", "w3"], ["c3"], name="project"))
    nodes += [
        helper.make_node("Add", ["c2", "c3" if projected else "x"], ["sum"], name="join"),
        helper.make_node("Relu", ["sum"], ["y"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["y"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["logits"], name="classifier", transB=1),
    ]
    kept = {name: array for name, array in weights.items() if any(name in node.input for node in nodes)}
    return models.save(path, nodes, IMAGE, {"logits": (1, 5)}, kept)


def quantized(folder: Path, source: Path, count: int = 16) -> Model:
    rows = np.random.default_rng(0).standard_normal((count, 1, 3, 8, 8)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    (folder / "out").mkdir(exist_ok=True)
    order = QuantizeOrder(
        model=Artifact.of(source),
        calibration={"image": Artifact.of(folder / "rows.npy")},
        folder=folder / "out",
        runtime="tensorrt",
    )
    return explicit_qdq.quantize(order)


def answers(model: Model) -> np.ndarray:
    """What ONNX Runtime makes of other inputs than those calibrated on."""
    rows = np.random.default_rng(1).standard_normal((8, 1, 3, 8, 8)).astype(np.float32)
    engine = Engine(model=model, runtime="onnxruntime", precision=model.precision)
    with backends.load("onnxruntime").open(engine) as session:
        return np.stack([next(iter(session.run({"image": row}).values())) for row in rows])


def inputs_of(graph: onnx.GraphProto, name: str) -> list[str]:
    """For each input of a node: `Q/DQ`, `DQ` of a constant, or as it was."""
    makers = {out: node for node in graph.node for out in node.output}
    (node,) = (node for node in graph.node if node.name == name)
    found = []
    for given in node.input:
        maker = makers.get(given)
        if maker is None or maker.op_type != PAIR[1]:
            found.append("float")
        else:
            before = makers.get(maker.input[0])
            found.append("DQ" if before is None else "Q/DQ" if before.op_type == PAIR[0] else "?")
    return found


@pytest.mark.parametrize("projected", [False, True])
def test_a_residual_network_computes_nearly_the_same(tmp_path: Path, *, projected: bool):
    source = residual_net(tmp_path / "m.onnx", projected=projected)
    right = answers(Model(file=Artifact.of(source)))
    model = quantized(tmp_path, source)
    off = np.abs(answers(model) - right).max() / np.abs(right).max()
    assert model.precision is Precision.INT8
    assert 0 < off < 0.05


@pytest.mark.parametrize("projected", [False, True])
def test_pairs_stand_where_tensorrt_fuses_them(tmp_path: Path, *, projected: bool):
    model = quantized(tmp_path, residual_net(tmp_path / "m.onnx", projected=projected))
    graph = onnx.load(str(model.file.path)).graph
    assert inputs_of(graph, "stem") == ["Q/DQ", "DQ", "float"]  # and none on the bias
    assert inputs_of(graph, "first") == inputs_of(graph, "second") == ["Q/DQ", "DQ"]
    assert inputs_of(graph, "join") == ["float", "Q/DQ"]  # the sum is fused into the second convolution
    assert inputs_of(graph, "pool") == ["Q/DQ"]
    assert inputs_of(graph, "classifier") == ["Q/DQ", "DQ", "float"]
    if projected:
        assert inputs_of(graph, "project") == ["Q/DQ", "DQ"]
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    made = [node.output[0] for node in graph.node if node.op_type in PAIR]
    assert {readers[name] for name in made} == {1}
    assert not [node for node in graph.node if node.op_type == "Identity"]
    assert [value.name for value in graph.output] == ["logits"]


def test_all_is_symmetric_int8_and_weights_have_a_scale_a_channel(tmp_path: Path):
    model = quantized(tmp_path, residual_net(tmp_path / "m.onnx"))
    loaded = onnx.load(str(model.file.path))
    constants = {tensor.name: tensor for tensor in loaded.graph.initializer}
    pairs = [node for node in loaded.graph.node if node.op_type in PAIR]
    for node in pairs:
        zero = constants[node.input[2]]
        assert zero.data_type == TensorProto.INT8
        assert not numpy_helper.to_array(zero).any()
        weight = constants.get(node.input[0])
        scales = numpy_helper.to_array(constants[node.input[1]])
        if weight is None:
            assert scales.size == 1
        else:
            assert weight.data_type == TensorProto.INT8
            assert scales.size == weight.dims[0]
            assert np.abs(numpy_helper.to_array(weight)).max() == 127
    assert max(entry.version for entry in loaded.opset_import if not entry.domain) <= 18


def test_a_tensor_that_others_read_too_stays_float_for_them(tmp_path: Path):
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], name="conv"),
        helper.make_node("Sigmoid", ["image"], ["s"], name="gate"),
        helper.make_node("Mul", ["c", "s"], ["maps"], name="gated"),
    ]
    source = models.save(
        tmp_path / "m.onnx", nodes, IMAGE, {"maps": (1, 3, 8, 8)}, {"w": models.weights(3, 3, 1, 1)}
    )
    graph = onnx.load(str(quantized(tmp_path, source).file.path)).graph
    assert inputs_of(graph, "conv") == ["Q/DQ", "DQ"]
    assert inputs_of(graph, "gate") == ["float"]
    assert inputs_of(graph, "gated") == ["float", "float"]


def test_a_sum_that_no_convolution_can_take_in_stays_float(tmp_path: Path):
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Add", ["r", "image"], ["maps"], name="join"),
    ]
    source = models.save(
        tmp_path / "m.onnx", nodes, IMAGE, {"maps": (1, 3, 8, 8)}, {"w": models.weights(3, 3, 1, 1)}
    )
    graph = onnx.load(str(quantized(tmp_path, source).file.path)).graph
    assert inputs_of(graph, "join") == ["float", "float"]


def test_a_convolution_whose_weights_are_computed_stays_float(tmp_path: Path):
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], name="fixed"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Reshape", ["p", "shape"], ["kernel"], name="reshape"),
        helper.make_node("Conv", ["image", "kernel"], ["maps"], name="computed"),
    ]
    constants = {"w": models.weights(9, 3, 1, 1), "shape": np.array([3, 3, 1, 1])}
    source = models.save(tmp_path / "m.onnx", nodes, IMAGE, {"maps": (1, 3, 8, 8)}, constants)
    graph = onnx.load(str(quantized(tmp_path, source).file.path)).graph
    assert inputs_of(graph, "fixed") == ["Q/DQ", "DQ"]
    assert inputs_of(graph, "computed") == ["float", "float"]


def spoil_zero(model: onnx.ModelProto) -> None:
    tensor = next(one for one in model.graph.initializer if one.name.endswith("_zero_point"))
    tensor.CopyFrom(numpy_helper.from_array(np.ones(tuple(tensor.dims), np.int8), tensor.name))


def spoil_type(model: onnx.ModelProto) -> None:
    tensor = next(one for one in model.graph.initializer if one.name.endswith("_zero_point"))
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.uint8), tensor.name))


def spoil_scale(model: onnx.ModelProto) -> None:
    tensor = next(one for one in model.graph.initializer if one.name.endswith("_scale"))
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float32), tensor.name))


@pytest.mark.parametrize("spoil", [spoil_zero, spoil_type, spoil_scale])
def test_a_file_that_is_not_symmetric_is_refused(tmp_path: Path, spoil: Callable[[onnx.ModelProto], None]):
    loaded = onnx.load(str(quantized(tmp_path, residual_net(tmp_path / "m.onnx")).file.path))
    explicit_qdq.check_symmetric(loaded)
    spoil(loaded)
    with pytest.raises(ModelError, match="symmetric"):
        explicit_qdq.check_symmetric(loaded)
