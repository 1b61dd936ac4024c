"""What fp16 does to values, shown in fp32: a graph in which all that fp16 would hold is rounded to it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx

_EXACT = "/exact"


def rounded_copy(model: onnx.ModelProto, kept: Collection[str]) -> onnx.ModelProto:
    """Return the fp32 model with weights, inputs and what nodes give rounded to fp16; `kept` nodes stay exact."""
    floats = {
        value.name for value in onnx.shape_inference.infer_shapes(model).graph.value_info if is_float(value)
    }
    floats |= {value.name for value in (*model.graph.input, *model.graph.output) if is_float(value)}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    halves = {name for node in graph.node if node.name not in kept for name in node.input}
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name in halves:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    inputs = {value.name for value in graph.input} & floats & halves
    nodes = [node for name in sorted(inputs) for node in _rounding(name, f"{name}/rounded")]
    for node in graph.node:
        nodes += [node] if node.name in kept else _rounded_node(node, inputs, floats)
    ordered = [
        onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes
    ]  # they live in the graph
    del graph.node[:], graph.value_info[:]
    graph.node.extend(ordered)
    return copy


def is_float(value: onnx.ValueInfoProto) -> bool:
    """Say whether a tensor is of float32."""
    return bool(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)


def _rounded_node(
    node: onnx.NodeProto, inputs: Collection[str], floats: Collection[str]
) -> Iterator[onnx.NodeProto]:
    """Yield a node that takes rounded inputs, and the rounding of what it gives."""
    node.input[:] = [f"{name}/rounded" if name in inputs else name for name in node.input]
    given = [name for name in node.output if name in floats]
    node.output[:] = [name + _EXACT if name in floats else name for name in node.output]
    yield node
    for name in given:
        yield from _rounding(name + _EXACT, name)


def _rounding(source: str, target: str) -> Iterator[onnx.NodeProto]:
    """Yield a cast to fp16 and one back: ONNX Runtime leaves those alone that a graph has of its own."""
    yield onnx.helper.make_node("Cast", [source], [f"{target}/fp16"], to=onnx.TensorProto.FLOAT16)
    yield onnx.helper.make_node("Cast", [f"{target}/fp16"], [target], to=onnx.TensorProto.FLOAT)
