from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.errors import EdgekdError, ModelError
from edgekd.worker.guard import check
from edgekd.worker.outline import outline
from tests.contracts import models
from tests.contracts.backend import real_models


def assert_same_as_onnx(path: Path) -> None:
    model = onnx.load(str(path), load_external_data=False)
    found = outline(path)
    assert [node.operator for node in found.nodes] == [node.op_type for node in model.graph.node]
    assert [node.inputs for node in found.nodes] == [sum(map(bool, node.input)) for node in model.graph.node]
    for node, right in zip(found.nodes, model.graph.node, strict=True):
        for attribute in right.attribute:
            if attribute.type == onnx.AttributeProto.INTS:
                assert node.integers[attribute.name] == tuple(attribute.ints)
    assert found.constants == {tensor.name for tensor in model.graph.initializer}
    dims = {tensor.name: tensor.dims for tensor in found.tensors}
    assert all(dims[tensor.name] == tuple(tensor.dims) for tensor in model.graph.initializer)
    assert [value.name for value in found.inputs] == [value.name for value in model.graph.input]
    assert [value.name for value in found.outputs] == [value.name for value in model.graph.output]


@pytest.mark.parametrize("path", real_models())
def test_a_real_model_reads_as_onnx_reads_it(path: Path):
    assert_same_as_onnx(path)


@pytest.mark.parametrize(
    "make",
    [models.conv_net, models.recurrent_cell, models.embedding, models.fused_outputs, models.quantized_net],
)
def test_a_made_model_reads_as_onnx_reads_it(make: models.Make, tmp_path: Path):
    assert_same_as_onnx(make(tmp_path / "m.onnx"))


def test_a_dynamic_dimension_is_none_and_a_fixed_one_a_number(tmp_path: Path):
    found = outline(models.conv_net(tmp_path / "m.onnx", batch="n"))
    assert found.inputs[0].shape == (None, 3, 8, 8)
    assert found.inputs[0].element_type == models.FLOAT


def test_every_truncation_is_a_model_error_or_a_smaller_model(tmp_path: Path):
    whole = models.recurrent_cell(tmp_path / "whole.onnx").read_bytes()
    path = tmp_path / "part.onnx"
    refused = 0
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            outline(path)
        except ModelError:
            refused += 1
    assert refused > 0.9 * len(whole)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_or_read_but_never_a_crash(scratch: Path, content: bytes):
    path = scratch / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(EdgekdError):
        check(path)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_but_never_a_crash(scratch: Path, at: int, value: int):
    source = scratch / "whole.onnx"
    if not source.exists():
        models.conv_net(source)
    content = bytearray(source.read_bytes())
    content[at % len(content)] = value
    path = scratch / "m.onnx"
    path.write_bytes(content)
    with suppress(EdgekdError):  # anything else fails the test
        check(path)


def test_deep_nesting_is_refused_before_python_runs_out_of_stack(tmp_path: Path):
    def spanned(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 0x7F:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(3000):  # a graph in an attribute of a node of a graph, and so on
        graph = spanned(1, spanned(5, spanned(6, graph)))
    path = tmp_path / "m.onnx"
    path.write_bytes(spanned(7, graph))
    with pytest.raises(ModelError, match="nested"):
        outline(path)


def test_a_million_nodes_are_refused_early(tmp_path: Path):
    path = tmp_path / "m.onnx"
    nodes = b"\x0a\x00" * 1_000_000
    path.write_bytes(
        b"\x3a" + bytes([len(nodes) & 0x7F | 0x80, len(nodes) >> 7 & 0x7F | 0x80, len(nodes) >> 14]) + nodes
    )
    with pytest.raises(ModelError, match="100000 nodes"):
        outline(path)
