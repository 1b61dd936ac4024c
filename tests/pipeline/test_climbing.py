"""Two models are held against each other on every rung, and the verdict says where they part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd import pipeline
from edgekd.errors import ModelError, UsageError
from edgekd.values.codec import plain
from edgekd.values.ladder import Ladder
from edgekd.values.model import Precision
from edgekd.values.target import Profile, Target
from tests.contracts import models
from tests.pipeline.rehearsed import WorkerHere

NETS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.end = nn.Linear(8, 5)

    def forward(self, image):
        return self.end(self.block(image).mean(dim=(2, 3)))


def net():
    torch.manual_seed(0)
    made = Net().eval()
    made.block.norm.running_mean.fill_(0.2)
    return made


class Branching(Net):
    def forward(self, image):
        if image.sum() > 0:
            return super().forward(image)
        return super().forward(-image)


def branching():
    made = Branching().eval()
    made.load_state_dict(net().state_dict())
    return made
"""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("stages.looking", "devices.local", "devices.external"):
        monkeypatch.setattr(f"edgekd.{module}.Child", WorkerHere)


def target(*runtimes: str) -> Target:
    names = runtimes or ("onnxruntime", "openvino")
    profile = Profile(name="here", description="", runtimes=dict.fromkeys(names, (Precision.FP32,)))
    return Target(profile=profile, device="local", runtimes=names, threads=1)


def climbed(first: Path | str, second: Path, *runtimes: str, **asked: Any) -> Ladder:
    return pipeline.ladder(str(first), str(second), target=target(*runtimes), **asked)


def changed(source: Path, name: str, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(str(source))
    change(model)
    onnx.save(model, str(source.with_name(name)))
    return source.with_name(name)


def scaled(weight: str, factor: float = 3.0, channel: int = 0) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (one for one in model.graph.initializer if one.name == weight)
        array = numpy_helper.to_array(tensor).copy()
        array[channel] *= np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(array, weight))

    return change


def int8(source: Path, name: str) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        rows = iter([{"image": one} for one in np.random.default_rng(3).random((16, 1, 3, 8, 8), np.float32)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    target_ = source.with_name(name)
    quantize_static(
        str(source),
        str(target_),
        Rows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        **kinds,
    )
    return target_


def first_bad(found: Ladder) -> tuple[str, str]:
    assert found.first_bad is not None
    assert found.first_bad.stands_out
    return found.first_bad.layer, found.first_bad.operator


@pytest.mark.usefixtures("here")
def test_a_model_is_the_same_as_itself_in_another_format(tmp_path: Path):
    import openvino

    one = models.conv_net(tmp_path / "one.onnx")
    openvino.save_model(openvino.convert_model(str(one)), tmp_path / "other.xml", compress_to_fp16=False)
    found = climbed(one, tmp_path / "other.xml")
    assert found.passed
    assert [rung.passed for rung in found.rungs] == [None, True, True, None, True]
    assert "cannot read" in found.rungs[3].problem  # ONNX Runtime reads no .xml, and the ladder goes on
    assert not any(rung.blames for rung in found.rungs)


@pytest.mark.usefixtures("here")
def test_a_fault_fails_on_every_rung_and_its_layer_is_named_once(tmp_path: Path):
    one = models.conv_net(tmp_path / "one.onnx")
    found = climbed(one, changed(one, "other.onnx", scaled("w2")))
    assert not found.passed
    assert [rung.passed for rung in found.rungs] == [None, True, True, False, False, False]
    assert first_bad(found) == ("c2", "Conv")
    assert sum(bool(rung.blames) for rung in found.rungs) == 1
    json.dumps(plain(found), allow_nan=False)


@pytest.mark.usefixtures("here")
def test_a_limit_of_ones_own_may_let_it_pass(tmp_path: Path):
    one = models.conv_net(tmp_path / "one.onnx")
    other = changed(one, "other.onnx", scaled("w3", 1.005))
    assert not climbed(one, other, "onnxruntime").passed
    assert climbed(one, other, "onnxruntime", limit=0.1).passed


@pytest.mark.usefixtures("here")
def test_a_sound_int8_file_passes_and_one_with_a_broken_scale_inside_does_not(tmp_path: Path):
    one = models.conv_net(tmp_path / "one.onnx")
    sound = int8(one, "int8.onnx")
    assert climbed(one, sound, "onnxruntime").passed
    scales = [
        tensor.name for tensor in onnx.load(str(sound)).graph.initializer if tensor.name.startswith("w2")
    ]
    (scale,) = (name for name in scales if name.endswith("_scale"))
    found = climbed(one, changed(sound, "broken.onnx", scaled(scale)), "onnxruntime")
    assert not found.passed
    assert first_bad(found) == ("r2", "Conv")  # the quantiser has put Conv and Relu into one


@pytest.mark.usefixtures("here")
def test_two_int8_files_can_be_compared(tmp_path: Path):
    one = int8(models.conv_net(tmp_path / "one.onnx"), "int8.onnx")
    assert climbed(one, one, "onnxruntime").passed


@pytest.mark.usefixtures("here")
def test_another_opset_and_a_dynamic_batch_are_no_difference(tmp_path: Path):
    from onnx import version_converter

    one = models.conv_net(tmp_path / "one.onnx", batch="n")
    other = tmp_path / "other.onnx"
    onnx.save(version_converter.convert_version(onnx.load(str(one)), 21), str(other))
    assert climbed(one, other).passed
    assert climbed(one, other, "onnxruntime", shapes={"image": (2, 3, 8, 8)}).passed


@pytest.mark.usefixtures("here")
def test_an_opset_that_a_runtime_lacks_is_a_rung_that_is_left_out(tmp_path: Path):
    one = models.conv_net(tmp_path / "one.onnx")

    def beyond(model: onnx.ModelProto) -> None:
        model.graph.node[-1].input[0] = "scaled"
        scaler = helper.make_node("Scaler", ["f"], ["scaled"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])
        model.graph.node.insert(6, scaler)
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))  # OpenVINO has none of these

    other = changed(one, "other.onnx", beyond)
    found = climbed(one, other)
    assert found.passed
    assert [rung.passed for rung in found.rungs] == [None, True, True, True, True, None]
    assert "openvino" in found.rungs[-1].problem
    asked = climbed(one, other, asked=True)
    assert not asked.passed  # who names a runtime wants the file to run there


@pytest.mark.usefixtures("here")
def test_what_only_one_runtime_knows_is_held_against_that_alone(tmp_path: Path):
    one = models.conv_net(tmp_path / "one.onnx")

    def own(model: onnx.ModelProto) -> None:
        node = model.graph.node[1]
        node.domain, node.op_type = "com.microsoft", "QuickGelu"
        node.attribute.append(helper.make_attribute("alpha", 1e4))  # all but a ReLU
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    found = climbed(one, changed(one, "other.onnx", own), "onnxruntime", limit=1e-3)
    assert found.passed
    assert "cannot be computed in numpy" in found.rungs[2].problem


@pytest.mark.usefixtures("here")
def test_where_nothing_runs_the_second_model_there_is_no_verdict(tmp_path: Path):
    one = models.conv_net(tmp_path / "one.onnx")
    other = changed(one, "other.onnx", lambda model: setattr(model.graph.node[1], "op_type", "NoSuch"))
    with pytest.raises(ModelError):
        climbed(one, other, "onnxruntime")


@pytest.mark.usefixtures("here")
def test_inputs_may_have_other_names_and_must_have_the_same_shapes(tmp_path: Path):
    one = models.conv_net(tmp_path / "one.onnx")

    def rename(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = model.graph.node[0].input[0] = "picture"

    assert climbed(one, changed(one, "other.onnx", rename), "onnxruntime").passed
    with pytest.raises(ModelError, match="take different inputs"):
        climbed(one, models.conv_net(tmp_path / "larger.onnx", side=9), "onnxruntime")


@pytest.mark.usefixtures("here")
def test_control_flow_is_compared_as_a_whole(tmp_path: Path):
    def branching(path: Path, operation: str) -> Path:
        shape = [helper.make_tensor_value_info("inner", TensorProto.FLOAT, (1, 4))]
        inner = [
            helper.make_graph([helper.make_node(kind, ["r"], ["inner"])], kind, [], shape)
            for kind in (operation, "Exp")
        ]
        nodes = [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("ReduceSum", ["r"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["condition"]),
            helper.make_node("If", ["condition"], ["y"], then_branch=inner[0], else_branch=inner[1]),
        ]
        inputs = {"x": (TensorProto.FLOAT, (1, 4))}
        return models.save(path, nodes, inputs, {"y": (1, 4)}, {"zero": np.array(0, np.float32)})

    one, other = (branching(tmp_path / f"{name}.onnx", name) for name in ("Neg", "Sqrt"))
    assert climbed(one, one, "onnxruntime").passed
    found = climbed(one, other, "onnxruntime")
    assert not found.passed
    assert first_bad(found) == ("y", "If")


@pytest.mark.usefixtures("here")
def test_real_inputs_are_used_where_they_are_given(tmp_path: Path):
    one = models.conv_net(tmp_path / "one.onnx")
    np.save(tmp_path / "data.npy", np.random.default_rng(0).random((6, 1, 3, 8, 8), np.float32))
    found = climbed(one, one, "onnxruntime", data=tmp_path / "data.npy")
    assert found.real
    assert not found.problems
    assert found.rungs[-1].samples == 6
    assert not climbed(one, one, "onnxruntime").real


def test_a_runtime_that_dies_of_a_file_is_a_rung_that_is_left_out(tmp_path: Path):
    one = models.conv_net(tmp_path / "one.onnx")
    deadly = models.rehearsing(models.conv_net(tmp_path / "other.onnx"), crash_after=2)
    found = climbed(one, deadly, "rehearsal", "onnxruntime")
    died = [rung for rung in found.rungs if rung.problem]
    assert [rung.name for rung in died] == [f"{deadly} on rehearsal"]
    assert "crashed" in died[0].problem
    assert found.passed
    assert found.rungs[-1].passed


@pytest.mark.parametrize("make", [models.conv_without_weights, models.pool_with_huge_stride])
def test_a_file_that_kills_a_runtime_is_refused_before_one_sees_it(
    tmp_path: Path, make: Callable[[Path], Path]
):
    with pytest.raises(ModelError, match="malformed or hostile"):
        climbed(models.conv_net(tmp_path / "one.onnx"), make(tmp_path / "other.onnx"), "openvino")


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def exported(nets: Path) -> Path:
    from edgekd.distillation.teachers import module_from
    from edgekd.stages.emit import emit
    from edgekd.stages.export import save

    module = module_from("nets.py:net", None, beside=nets)
    return save(nets / "exported", emit(module, {"image": (1, 3, 8, 8)}, ("logits",))).file.path


@pytest.mark.usefixtures("here")
def test_a_torch_module_stands_at_the_top_and_a_bad_layer_is_traced_to_its_line(nets: Path):
    model = exported(nets)
    sound = climbed("nets.py:net", model, "onnxruntime")
    assert sound.passed
    assert [rung.name for rung in sound.rungs[:2]] == ["nets.py:net in torch", "exported program"]
    weight = next(node for node in onnx.load(str(model)).graph.node if node.op_type == "Conv").input[1]
    found = climbed("nets.py:net", changed(model, "bad.onnx", scaled(weight, channel=2)), "onnxruntime")
    assert not found.passed
    blamed = found.first_bad
    assert blamed is not None
    assert blamed.module.startswith("block")
    path, _, line = blamed.source.rpartition(":")
    assert Path(path).name == "nets.py"
    assert "self.norm(self.conv(x))" in NETS.splitlines()[int(line) - 1]


@pytest.mark.usefixtures("here")
def test_a_module_that_cannot_be_exported_loses_that_rung_only(nets: Path):
    found = climbed("nets.py:branching", exported(nets), "onnxruntime")
    assert found.passed  # random inputs lie above 0
    assert "cannot be exported" in found.rungs[1].problem


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("first", ["nowhere.onnx", "nowhere.py:net", "model.txt"])
def test_what_is_not_there_is_a_usage_error(nets: Path, first: str):
    with pytest.raises(UsageError):
        climbed(first, models.conv_net(nets / "one.onnx"), "onnxruntime")


@pytest.mark.usefixtures("here")
def test_weights_are_for_a_module_alone(tmp_path: Path):
    one = models.conv_net(tmp_path / "one.onnx")
    with pytest.raises(UsageError, match="its own weights"):
        climbed(one, one, "onnxruntime", weights=tmp_path / "w.safetensors")
