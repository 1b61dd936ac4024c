"""Before int8 is made: the graph that is quantised, calibration that does not stand for its inputs, and who moves what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest

from edgekd import backends
from edgekd.errors import ModelError
from edgekd.quantizers.__main__ import quantize, rank, survey
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.order import QuantizeOrder, RankOrder, SurveyOrder, SurveyReply
from edgekd.values.variant import Method, Operators, Quantization, Ranges
from tests.contracts import models

STATIC = Quantization(method=Method.STATIC)


def rows(path: Path, array: np.ndarray) -> dict[str, Artifact]:
    np.save(path, array)
    return {"image": Artifact.of(path)}


def images(count: int = 16, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(count).random((count, 1, 3, 8, 8))).astype(np.float32)


def surveyed(folder: Path, aside: np.ndarray) -> SurveyReply:
    order = SurveyOrder(
        model=Artifact.of(models.conv_net(folder / "m.onnx")),
        calibration=rows(folder / "c.npy", images()),
        held_out=rows(folder / "h.npy", aside),
        folder=folder / "survey",
    )
    return survey(order)


def ordered(folder: Path, reply: SurveyReply, how: Quantization, runtime: str = "onnxruntime") -> Model:
    calibration = rows(folder / "c.npy", images())
    order = QuantizeOrder(
        model=reply.model.file, calibration=calibration, folder=folder / "int8", runtime=runtime, how=how
    )
    return quantize(order)


def quantized_convs(model: Model) -> int:
    graph = onnx.load(str(model.file.path)).graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    return sum(
        node.op_type in {"Conv", "Gemm"} and made.get(node.input[0]) == "DequantizeLinear"
        for node in graph.node
    )


def test_segments_are_weighted_nodes_with_what_follows_and_every_node_has_a_name(tmp_path: Path):
    reply = surveyed(tmp_path, images(8))
    assert [one.kind for one in reply.segments] == ["Conv", "Conv", "Gemm"]
    assert [len(one.nodes) for one in reply.segments] == [2, 4, 1]  # Conv Relu, Conv Relu pool flatten, Gemm
    assert all(node.name for node in onnx.load(str(reply.model.file.path)).graph.node)
    assert reply.beyond == {}


def test_inputs_that_leave_the_calibrated_ranges_are_named_with_how_far(tmp_path: Path):
    beyond = surveyed(tmp_path, images(8, scale=3.0)).beyond
    assert beyond["image"] == pytest.approx(2.0, abs=0.1)
    assert len(beyond) > 3


@pytest.mark.parametrize("ranges", list(Ranges))
def test_each_way_to_find_ranges_gives_a_file_of_the_same_structure_that_computes_nearly_the_same(
    tmp_path: Path, ranges: Ranges
):
    reply = surveyed(tmp_path, images(8))
    model = ordered(tmp_path, reply, replace(STATIC, ranges=ranges))
    assert quantized_convs(model) == 3
    found, right = (
        _answers(one, "onnxruntime") for one in (model, Model(file=Artifact.of(tmp_path / "m.onnx")))
    )
    assert 0 < np.abs(found - right).max() < 0.1 * np.abs(right).max()


@pytest.mark.parametrize("method", [Method.STATIC, Method.EXPLICIT])
def test_kept_nodes_stay_float_in_qdq_files(tmp_path: Path, method: Method):
    reply = surveyed(tmp_path, images(8))
    runtime = "tensorrt" if method is Method.EXPLICIT else "onnxruntime"
    how = Quantization(method=method)
    whole = quantized_convs(ordered(tmp_path, reply, how, runtime))
    part = quantized_convs(ordered(tmp_path, reply, replace(how, kept=reply.segments[0].nodes), runtime))
    assert (whole, part) == (3, 2)


def test_kept_nodes_stay_float_in_nncfs_files(tmp_path: Path):
    reply = surveyed(tmp_path, images(8))
    kept = (*reply.segments[0].nodes, *reply.segments[2].nodes)
    how = Quantization(method=Method.NNCF, symmetric=True)
    counts = []
    for one in (how, replace(how, kept=kept)):
        model = ov.Core().read_model(str(ordered(tmp_path, reply, one, "openvino").file.path))
        counts.append(sum(node.get_type_name() == "FakeQuantize" for node in model.get_ops()))
    assert counts[1] < counts[0]
    assert counts[1] > 0


def test_weighted_operators_alone_are_quantised_where_that_is_asked(tmp_path: Path):
    reply, quantized = surveyed(tmp_path, images(8)), []
    for operators in Operators:
        graph = onnx.load(str(ordered(tmp_path, reply, replace(STATIC, operators=operators)).file.path)).graph
        made = {name: node.op_type for node in graph.node for name in node.output}
        (pool,) = (node for node in graph.node if node.op_type == "GlobalAveragePool")
        readers = [node for node in graph.node if pool.output[0] in node.input]
        quantized.append((made[pool.input[0]], readers[0].op_type))
    assert quantized[0] == ("DequantizeLinear", "QuantizeLinear")  # between Q/DQ a runtime's kernel is int8
    assert quantized[1] != quantized[0]


def test_a_segment_that_moves_the_outputs_more_ranks_higher(tmp_path: Path):
    path = models.conv_net(tmp_path / "m.onnx", width=16)
    model = onnx.load(str(path))
    (kernel,) = (one for one in model.graph.initializer if one.name == "w2")
    weights = onnx.numpy_helper.to_array(kernel).copy()
    weights[:, 0] *= 200.0  # one weight of a channel leaves no resolution for the others
    kernel.CopyFrom(onnx.numpy_helper.from_array(weights, "w2"))
    onnx.save(model, str(path))
    calibration = rows(tmp_path / "c.npy", images())
    reply = survey(
        SurveyOrder(model=Artifact.of(path), calibration=calibration, held_out={}, folder=tmp_path / "s")
    )
    how = replace(STATIC, per_channel=False)
    found = rank(
        RankOrder(
            model=reply.model.file,
            calibration=calibration,
            rows=calibration,
            how=how,
            segments=reply.segments,
        )
    ).divergences
    assert len(found) == 3
    assert found[1] == max(found) > 3 * found[2] > 0


def test_what_a_library_raises_from_its_inside_is_a_model_error(tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08:\x02zz")
    calibration = rows(tmp_path / "c.npy", images())
    with pytest.raises(ModelError, match=r"m\.onnx"):
        survey(SurveyOrder(model=Artifact.of(path), calibration=calibration, held_out={}, folder=tmp_path))


def _answers(model: Model, runtime: str) -> np.ndarray:
    precision = Precision.INT8 if model.precision is Precision.INT8 else Precision.FP32
    with backends.load(runtime).open(Engine(model=model, runtime=runtime, precision=precision)) as session:
        return np.stack([session.run({"image": row})["logits"] for row in images(8)])
