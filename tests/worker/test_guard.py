from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from edgekd.errors import IntegrityError, ModelError
from edgekd.values.model import Precision
from edgekd.worker import guard
from tests.contracts import models
from tests.contracts.backend import real_models

IMAGE = {"image": (models.FLOAT, (1, 3, 8, 8))}


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        guard.check(path)
    assert caught.value.mend
    return str(caught.value)


@pytest.mark.parametrize("path", real_models())
def test_a_model_nobody_here_wrote_passes(path: Path):
    guard.check(path)


@pytest.mark.parametrize(
    "make",
    [models.conv_net, models.recurrent_cell, models.embedding, models.fused_outputs, models.quantized_net],
)
def test_an_honest_model_passes(make: models.Make, tmp_path: Path):
    guard.check(make(tmp_path / "m.onnx"))


def test_a_conv_without_weights_is_refused(tmp_path: Path):
    assert "a Conv has 1 inputs and needs 2" in refusal(models.conv_without_weights(tmp_path / "m.onnx"))


def test_a_pool_with_a_huge_stride_is_refused(tmp_path: Path):
    assert "strides = 1099511627776" in refusal(models.pool_with_huge_stride(tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [0, 1]}),
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [-1, 1]}),
        ("MaxPool", {"kernel_shape": [1 << 33, 2]}),
        ("AveragePool", {"kernel_shape": [2, 2], "pads": [0, 0, 1 << 62, 0]}),
        ("DepthToSpace", {"blocksize": 0}),
        ("Transpose", {"perm": [0, 1, 1 << 40, 2]}),
    ],
)
def test_an_absurd_attribute_is_refused(tmp_path: Path, operator: str, attributes: dict[str, object]):
    nodes = [helper.make_node(operator, ["image"], ["y"], **attributes)]
    assert "hostile" in refusal(models.save(tmp_path / "m.onnx", nodes, IMAGE, {"y": None}, checked=False))


def test_an_absurd_attribute_inside_a_subgraph_is_refused(tmp_path: Path):
    bad = helper.make_node("MaxPool", ["image"], ["inner"], kernel_shape=[1, 1], strides=[1 << 40, 1])
    branch = helper.make_graph([bad], "branch", [], [helper.make_tensor_value_info("inner", 1, None)])
    nodes = [helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)]
    inputs = {**IMAGE, "condition": (TensorProto.BOOL, ())}
    assert "strides" in refusal(models.save(tmp_path / "m.onnx", nodes, inputs, {"y": None}, checked=False))


@pytest.mark.parametrize("shape", [(1 << 31,), (1 << 20, 1 << 20), (1,) * 65])
def test_an_absurd_declared_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = models.save(tmp_path / "m.onnx", nodes, {"x": (models.FLOAT, shape)}, {"y": None}, checked=False)
    assert "hostile" in refusal(path)


@pytest.mark.parametrize("dims", [(-1, 4), (1 << 40, 1 << 40), (1 << 30, 4)])
def test_an_absurd_stored_tensor_is_refused(tmp_path: Path, dims: tuple[int, ...]):
    path = models.conv_net(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    path.write_bytes(model.SerializeToString())
    assert "w1" in refusal(path)


def external(folder: Path, location: str) -> Path:
    path = models.conv_net(folder / "m.onnx")
    model = onnx.load(str(path))
    tensor = model.graph.initializer[0]
    set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    return path


def test_the_names_of_weights_are_read_without_opening_them(tmp_path: Path):
    assert guard.external_names(external(tmp_path, "absent.bin")) == ("absent.bin",)
    assert guard.external_names(external(tmp_path, "./a//b c.bin")) == ("a/b c.bin",)
    assert guard.external_names(models.conv_net(tmp_path / "whole.onnx")) == ()


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../secret", "a/../../b", "", ".", "a\\b", "a\nb", "a\0b", "\x1b[2J", "x" * 256, "a/" * 8 + "a",
     "*/_ORT_MEM_ADDR_/*", "//server/share", "\u202egnp.bin", "m.onnx", "M.ONNX"],
)  # fmt: skip
def test_a_name_of_weights_that_could_lead_elsewhere_is_refused(tmp_path: Path, location: str):
    with pytest.raises(IntegrityError, match="takes weights from"):
        guard.external_names(external(tmp_path, location))


def test_names_of_weights_that_are_one_file_on_some_disks_are_refused(tmp_path: Path):
    models.spread_net(tmp_path / "m.onnx", names=("w.bin", "W.bin"))
    with pytest.raises(IntegrityError, match="may be one file"):
        guard.external_names(tmp_path / "m.onnx")


def test_weights_must_be_those_that_were_named_with_the_model(tmp_path: Path):
    path = models.spread_net(tmp_path / "m.onnx")
    both = [tmp_path / name for name in models.SPREAD]
    guard.check(path, both)
    guard.check(path, both[::-1])
    with pytest.raises(IntegrityError, match="do not belong together") as caught:
        guard.check(path, both[:1])
    assert "w e.data was not named with it" in caught.value.cause
    with pytest.raises(IntegrityError, match="do not belong together"):
        guard.check(path, [*both, tmp_path / "m.onnx"])


def test_weights_beside_the_model_pass(tmp_path: Path):
    (tmp_path / "weights.bin").write_bytes(bytes(np.zeros(216, dtype=np.float32)))
    guard.check(external(tmp_path, "weights.bin"))


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret.bin", "a/../../secret.bin", "absent.bin", ".", ""]
)
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str):
    (tmp_path / "secret.bin").write_bytes(b"secret")
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(IntegrityError, match="takes weights from") as caught:
        guard.check(external(folder, location))
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_weights_through_a_link_are_refused(tmp_path: Path, link: Callable[[Path, Path], None]):
    (tmp_path / "secret.bin").write_bytes(b"secret")
    folder = tmp_path / "model"
    folder.mkdir()
    link(tmp_path / "secret.bin", folder / "weights.bin")
    with pytest.raises(IntegrityError):
        guard.check(external(folder, "weights.bin"))


def test_weights_through_a_linked_folder_are_refused(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "weights.bin").write_bytes(b"secret")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError):
        guard.check(external(folder, "sub/weights.bin"))


@pytest.mark.parametrize("name", ["m.onnx", "m.xml"])
def test_a_file_larger_than_any_model_is_refused_unread(tmp_path: Path, name: str):
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate((2 << 30) + 1)  # sparse
    assert "too large" in refusal(path)


def test_missing_and_unknown_files_are_model_errors(tmp_path: Path):
    assert "is not a file" in refusal(tmp_path / "absent.onnx")
    assert "is not a file" in refusal(tmp_path)
    (tmp_path / "m.tflite").write_bytes(b"TFL3")
    assert ".onnx or an .xml" in refusal(tmp_path / "m.tflite")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ('<!DOCTYPE net [<!ENTITY a "aaaa">]><net>&a;</net>', "document type"),
        ('<!DOCTYPE net SYSTEM "file:///etc/passwd"><net/>', "document type"),
        ("<net><layers></net>", "mismatched"),
        ("<html/>", "its root is <html>"),
        ("", "no element"),
        ("<net>" + "<a>" * 100 + "</a>" * 100 + "</net>", "nested"),
        ('<net><data strides="1,1099511627776"/></net>', "strides"),
        ('<net><data dilations="0,1"/></net>', "dilations"),
        ('<net><data pads_end="99999999,1"/></net>', "pads_end"),
    ],
)
def test_a_hostile_ir_file_is_refused(tmp_path: Path, text: str, cause: str):
    path = tmp_path / "m.xml"
    path.write_text(text)
    assert cause in refusal(path)


def test_an_honest_ir_file_passes(tmp_path: Path):
    import openvino as ov

    path = tmp_path / "m.xml"
    ov.save_model(ov.Core().read_model(str(models.conv_net(tmp_path / "m.onnx"))), str(path))
    guard.check(path)


def test_the_signature_leaves_out_weights_that_are_listed_as_inputs(tmp_path: Path):
    path = models.conv_net(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    model.graph.input.append(helper.make_tensor_value_info("w1", models.FLOAT, (8, 3, 3, 3)))
    onnx.save(model, str(path))
    assert [spec.name for spec in guard.onnx_signature(path).inputs] == ["image"]


def test_an_input_that_is_no_tensor_is_a_model_error(tmp_path: Path):
    path = models.conv_net(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    model.graph.input.append(helper.make_tensor_sequence_value_info("frames", models.FLOAT, None))
    onnx.save(model, str(path))
    with pytest.raises(ModelError, match="frames"):
        guard.onnx_signature(path)


def half_net(path: Path, kept: Sequence[str] = ()) -> Path:
    """Cast a conv_net to fp16, all but some of its nodes, with fp32 inputs and outputs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(str(models.conv_net(path)))
    for at, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}{at}"
    onnx.save(convert_float_to_float16(model, keep_io_types=True, node_block_list=list(kept)), str(path))
    return path


def with_weights_from(path: Path, operator: str) -> Path:
    """Give a conv_net fp16 weights that a Cast turns to fp32, or fp16 Constants in place of its initialisers."""
    model = onnx.load(str(models.conv_net(path)))
    graph = model.graph
    for tensor in [*graph.initializer]:
        halved = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), "")
        made = f"{tensor.name}_half"
        graph.node.insert(0, helper.make_node("Constant", [], [made], value=halved))
        to = TensorProto.FLOAT if operator == "Cast" else TensorProto.FLOAT16
        graph.node.insert(1, helper.make_node("Cast", [made], [tensor.name], to=to))
        graph.initializer.remove(tensor)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (models.conv_net, Precision.FP32),
        (half_net, Precision.FP16),
        (lambda path: half_net(path, ["Gemm6"]), Precision.FP16),
        (lambda path: half_net(path, ["Conv0", "Conv2"]), Precision.FP32),
        (lambda path: with_weights_from(path, "Cast"), Precision.FP32),
        (lambda path: with_weights_from(path, "Constant"), Precision.FP16),
        (models.quantized_net, Precision.INT8),
    ],
    ids=["fp32", "fp16", "mostly fp16", "mostly fp32", "stored in fp16", "fp16 constants", "int8"],
)
def test_a_graph_is_what_most_of_its_weighted_operators_compute_in(
    tmp_path: Path, make: models.Make, expected: Precision
):
    assert guard.onnx_signature(make(tmp_path / "m.onnx")).precision is expected
