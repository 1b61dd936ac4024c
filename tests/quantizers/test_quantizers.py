from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekd import backends
from edgekd.errors import DataError, EdgekdError, ModelError, UsageError
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.order import QuantizeOrder
from edgekd.wire import Child
from tests.contracts import models

RUNTIMES = ["onnxruntime", "openvino", "tensorrt"]


@pytest.fixture(scope="module")
def child():
    with Child("edgekd.quantizers", memory_mib=8192, threads=1) as child:
        yield child


def images(count: int = 24) -> np.ndarray:
    return np.random.default_rng(0).random((count, 1, 3, 8, 8)).astype(np.float32)


def calibration(path: Path, array: np.ndarray, name: str = "image") -> dict[str, Artifact]:
    np.save(path, array)
    return {name: Artifact.of(path)}


def ordered(child: Child, model: Path, rows: dict[str, Artifact], runtime: str, folder: Path) -> Model:
    order = QuantizeOrder(model=Artifact.of(model), calibration=rows, folder=folder, runtime=runtime)
    return child.ask("quantize", order, Model, timeout_s=120)


def answers(model: Model, runtime: str, rows: np.ndarray) -> np.ndarray:
    runtime = "onnxruntime" if runtime == "tensorrt" else runtime  # which computes what the file says
    engine = Engine(model=model, runtime=runtime, precision=model.precision)
    with backends.load(runtime).open(engine) as session:
        return np.stack([session.run({"image": row})["logits"] for row in rows])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_quantized_network_answers_nearly_as_the_float_one(child: Child, tmp_path: Path, runtime: str):
    path = models.conv_net(tmp_path / "m.onnx", width=32)
    rows = calibration(tmp_path / "x.npy", images())
    model = ordered(child, path, rows, runtime, tmp_path / "int8")
    assert model.precision is Precision.INT8
    right = answers(Model(file=Artifact.of(path)), runtime, images())
    found = answers(model, runtime, images())
    assert 0 < np.abs(found - right).max() < 0.05 * np.abs(right).max()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_weights_are_stored_as_integers(child: Child, tmp_path: Path, runtime: str):
    path = models.conv_net(tmp_path / "m.onnx", width=256)  # 2.4 MB of floats
    model = ordered(child, path, calibration(tmp_path / "x.npy", images(4)), runtime, tmp_path / "int8")
    assert model.size_bytes < 0.35 * path.stat().st_size


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_same_order_gives_the_same_file(child: Child, tmp_path: Path, runtime: str):
    path = models.conv_net(tmp_path / "m.onnx")
    rows = calibration(tmp_path / "x.npy", images())
    one, other = (ordered(child, path, rows, runtime, tmp_path / name) for name in ("a", "b"))
    assert one.file.sha256 == other.file.sha256
    assert (one.weights and one.weights.sha256) == (other.weights and other.weights.sha256)


def test_onnxruntimes_model_has_explicit_qdq_u8_by_s8_a_channel(child: Child, tmp_path: Path):
    path = models.conv_net(tmp_path / "m.onnx")
    model = ordered(child, path, calibration(tmp_path / "x.npy", images()), "onnxruntime", tmp_path / "int8")
    graph = onnx.load(str(model.file.path)).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    quantize = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {kinds[node.input[2]] for node in quantize} == {onnx.TensorProto.UINT8}
    weights = next(t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4)
    scale = next(
        n.input[1] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] == weights.name
    )
    assert next(tuple(t.dims) for t in graph.initializer if t.name == scale) == (8,)


def test_a_rehearsal_is_quantized_too_and_runs(child: Child, tmp_path: Path):
    path = models.conv_net(tmp_path / "m.onnx")
    model = ordered(child, path, calibration(tmp_path / "x.npy", images()), "rehearsal", tmp_path / "int8")
    right = answers(Model(file=Artifact.of(path)), "rehearsal", images(4))
    assert np.abs(answers(model, "rehearsal", images(4)) - right).max() < 0.05 * np.abs(right).max()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_dynamic_batch_stays_dynamic(child: Child, tmp_path: Path, runtime: str):
    path = models.conv_net(tmp_path / "m.onnx", batch="n")
    model = ordered(child, path, calibration(tmp_path / "x.npy", images()), runtime, tmp_path / "int8")
    runtime = "onnxruntime" if runtime == "tensorrt" else runtime
    engine = Engine(model=model, runtime=runtime, precision=Precision.INT8, shapes={"image": (3, 3, 8, 8)})
    with backends.load(runtime).open(engine) as session:
        found = session.run({"image": images(3)[:, 0]})["logits"]
    assert found.shape == (3, 5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("array", "says"),
    [
        (images()[:0], "empty"),
        (np.full_like(images(), 0.5), "constant"),
        (np.where(images() > 0.999, np.nan, images()), "NaN"),
        (np.where(images() > 0.999, np.inf, images()), "infinity"),
        (images()[..., :4], "takes rows of"),
        (images()[:, 0], "takes rows of"),
    ],
)
def test_worthless_calibration_is_a_data_error_with_a_mend(
    child: Child, tmp_path: Path, runtime: str, array: np.ndarray, says: str
):
    path = models.conv_net(tmp_path / "m.onnx")
    with pytest.raises(DataError, match=says) as caught:
        ordered(child, path, calibration(tmp_path / "x.npy", array), runtime, tmp_path / "int8")
    assert "real inputs" in caught.value.mend


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_calibration_of_another_name_is_a_data_error(child: Child, tmp_path: Path, runtime: str):
    rows = calibration(tmp_path / "x.npy", images(), name="picture")
    with pytest.raises(DataError, match=r"picture|image"):
        ordered(child, models.conv_net(tmp_path / "m.onnx"), rows, runtime, tmp_path / "int8")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_quantized_model_is_not_quantized_again(child: Child, tmp_path: Path, runtime: str):
    path = models.quantized_net(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="quantised already"):
        ordered(child, path, calibration(tmp_path / "x.npy", images()), runtime, tmp_path / "int8")


def test_an_openvino_int8_model_is_not_quantized_again(child: Child, tmp_path: Path):
    rows = calibration(tmp_path / "x.npy", images())
    model = ordered(child, models.conv_net(tmp_path / "m.onnx"), rows, "openvino", tmp_path / "int8")
    with pytest.raises(ModelError, match="quantised already"):
        ordered(child, model.file.path, rows, "openvino", tmp_path / "again")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\x08:\x02zz"])
def test_garbage_is_a_model_error(child: Child, tmp_path: Path, runtime: str, content: bytes):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        ordered(child, path, calibration(tmp_path / "x.npy", images()), runtime, tmp_path / "int8")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_model_with_nothing_to_quantize_says_so(child: Child, tmp_path: Path, runtime: str):
    nodes = [helper.make_node("Sin", ["image"], ["logits"])]
    inputs = {"image": (models.FLOAT, (1, 3, 8, 8))}
    path = models.save(tmp_path / "m.onnx", nodes, inputs, {"logits": (1, 3, 8, 8)})
    with pytest.raises(ModelError, match="nothing to quantise"):
        ordered(child, path, calibration(tmp_path / "x.npy", images()), runtime, tmp_path / "int8")


def test_a_runtime_nobody_quantizes_for_is_named(child: Child, tmp_path: Path):
    rows = calibration(tmp_path / "x.npy", images())
    with pytest.raises(UsageError, match="coreml"):
        ordered(child, models.conv_net(tmp_path / "m.onnx"), rows, "coreml", tmp_path / "int8")


def test_a_model_that_kills_the_quantizer_harms_nobody_else(tmp_path: Path):
    path = models.conv_without_weights(tmp_path / "m.onnx")
    with Child("edgekd.quantizers", memory_mib=8192, threads=1) as child, pytest.raises(EdgekdError):
        ordered(child, path, calibration(tmp_path / "x.npy", images()), "openvino", tmp_path / "int8")
