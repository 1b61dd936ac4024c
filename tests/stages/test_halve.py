from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.errors import DataError, ModelError
from edgekd.stages import halve as stage
from edgekd.stages.halve import Halved
from edgekd.stages.quantize import Quantizers
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model, Precision
from tests.contracts import models


def sampled(
    folder: Path, scale: float = 1.0, rows: int = 4, shape: tuple[int, ...] = (1, 3, 8, 8)
) -> dict[str, Artifact]:
    path = folder / "images.npy"
    np.save(path, (scale * np.random.default_rng(0).standard_normal((rows, *shape))).astype(np.float32))
    return {"image": Artifact.of(path)}


def of(path: Path, precision: Precision = Precision.FP32) -> Model:
    return Model(file=Artifact.of(path), precision=precision)


@pytest.fixture(scope="module")
def quantizers() -> Iterator[Quantizers]:
    with Quantizers() as found:
        yield found


def halve(folder: Path, quantizers: Quantizers, model: Model, samples: dict[str, Artifact]) -> Halved:
    return stage.halve(folder, model, samples, quantizers)


def kinds(path: Path) -> set[int]:
    return {tensor.data_type for tensor in onnx.load(str(path)).graph.initializer}


def gained(path: Path, gain: float) -> Path:
    """A network in which one Conv makes values `gain` times as large, and a later one brings them back."""
    weights = {
        "up": models.weights(4, 3, 1, 1) * np.float32(gain),
        "down": models.weights(2, 4, 1, 1) / np.float32(gain),
    }
    nodes = [
        helper.make_node("Conv", ["image", "up"], ["large"], name="grow"),
        helper.make_node("Relu", ["large"], ["kept"], name="keep"),
        helper.make_node("Conv", ["kept", "down"], ["small"], name="shrink"),
        helper.make_node("Relu", ["small"], ["maps"], name="last"),
    ]
    return models.save(
        path, nodes, {"image": (TensorProto.FLOAT, (1, 3, 8, 8))}, {"maps": (1, 2, 8, 8)}, weights
    )


def test_the_graph_is_in_fp16_and_its_inputs_and_outputs_are_not(tmp_path: Path, quantizers: Quantizers):
    source = models.conv_net(tmp_path / "m.onnx")
    found = halve(tmp_path / "out", quantizers, of(source), sampled(tmp_path))
    made = onnx.load(str(found.model.file.path))
    assert found.model.precision is Precision.FP16
    assert {value.type.tensor_type.elem_type for value in (*made.graph.input, *made.graph.output)} == {
        TensorProto.FLOAT
    }
    assert kinds(found.model.file.path) == {TensorProto.FLOAT16}
    assert [value.name for value in made.graph.output] == ["logits"]
    assert found.kept == ()
    assert 0 < found.match.relative_error < 0.01
    assert found.model.file.size_bytes < source.stat().st_size


def test_what_overflows_on_real_values_stays_in_fp32(tmp_path: Path, quantizers: Quantizers):
    found = halve(tmp_path / "out", quantizers, of(gained(tmp_path / "m.onnx", 1e5)), sampled(tmp_path))
    assert found.kept == ("grow", "keep", "shrink")
    assert found.match.relative_error < 0.01
    assert (
        halve(tmp_path / "fine", quantizers, of(gained(tmp_path / "m.onnx", 10)), sampled(tmp_path)).kept
        == ()
    )


def test_what_comes_near_the_limit_stays_too(tmp_path: Path, quantizers: Quantizers):
    """Other inputs reach further than the samples: a factor of four is left."""
    model = of(gained(tmp_path / "m.onnx", 1e4))
    largest = 65504 / 4 / 1e4
    assert "grow" in halve(tmp_path / "a", quantizers, model, sampled(tmp_path, scale=2 * largest)).kept
    assert (
        "grow" not in halve(tmp_path / "b", quantizers, model, sampled(tmp_path, scale=0.05 * largest)).kept
    )


def test_a_square_that_overflows_inside_an_operator_stays(tmp_path: Path, quantizers: Quantizers):
    nodes = [
        helper.make_node("ReduceL2", ["image"], ["norm"], axes=[1], name="norm"),
        helper.make_node("Identity", ["norm"], ["out"], name="out"),
    ]
    path = models.save(
        tmp_path / "m.onnx", nodes, {"image": (TensorProto.FLOAT, (1, 3, 8, 8))}, {"out": (1, 1, 8, 8)}
    )
    assert halve(tmp_path / "out", quantizers, of(path), sampled(tmp_path, scale=300)).kept == ("norm",)


def test_a_model_that_fp16_spoils_is_refused_with_the_output(tmp_path: Path, quantizers: Quantizers):
    """Adding and taking away 2048 leaves nothing of what is smaller than 1."""
    nodes = [
        helper.make_node("Add", ["image", "big"], ["far"]),
        helper.make_node("Sub", ["far", "big"], ["back"]),
    ]
    path = models.save(
        tmp_path / "m.onnx",
        nodes,
        {"image": (TensorProto.FLOAT, (1, 3, 8, 8))},
        {"back": (1, 3, 8, 8)},
        {"big": np.float32(4096)},
    )
    with pytest.raises(ModelError, match="something else in fp16") as caught:
        halve(tmp_path / "out", quantizers, of(path), sampled(tmp_path, scale=0.3))
    assert "'back'" in caught.value.cause


def test_a_quantised_model_or_another_precision_is_refused(tmp_path: Path, quantizers: Quantizers):
    path = models.quantized_net(tmp_path / "q.onnx")
    with pytest.raises(ModelError, match="quantised"):
        halve(tmp_path / "out", quantizers, of(path), sampled(tmp_path))
    with pytest.raises(ModelError, match="not in fp32"):
        halve(tmp_path / "out", quantizers, of(path, Precision.INT8), sampled(tmp_path))


def test_malformed_models_and_unfit_samples_are_refused(tmp_path: Path, quantizers: Quantizers):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"<html>")
    with pytest.raises(ModelError, match="not a valid"):
        halve(tmp_path / "out", quantizers, of(path), sampled(tmp_path))
    model = of(models.conv_net(tmp_path / "c.onnx"))
    with pytest.raises(DataError, match="no samples"):
        halve(tmp_path / "out", quantizers, model, sampled(tmp_path, rows=0))
    with pytest.raises(DataError, match="the model takes"):
        halve(tmp_path / "out", quantizers, model, {"picture": sampled(tmp_path)["image"]})
    with pytest.raises(ModelError, match="on these samples"):
        halve(tmp_path / "out", quantizers, model, sampled(tmp_path, shape=(1, 4, 8, 8)))


def test_the_same_model_gives_the_same_file(tmp_path: Path, quantizers: Quantizers):
    model = of(models.conv_net(tmp_path / "m.onnx"))
    first, second = (halve(tmp_path / name, quantizers, model, sampled(tmp_path)) for name in "ab")
    assert first.model.file.sha256 == second.model.file.sha256
