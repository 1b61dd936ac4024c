"""Write a folded student as an ONNX graph, node by node, each named after its module."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from edgekd.errors import ModelError

OPSET = 17  # understood by every runtime we target, JetPack 6's TensorRT 10.3 included
_IR_VERSION = 8  # the one that came with opset 17

INPUT, OUTPUT = "images", "logits"


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One node of the trace: where it stands, what it reads and what it is to write."""

    graph: onnx.GraphProto
    name: str
    inputs: list[str]
    output: str

    def put(self, operation: str, weights: tuple[str, ...] = (), **attributes: Any) -> None:
        read = [*self.inputs, *weights]
        node = helper.make_node(operation, read, [self.output], name=self.name, **attributes)
        self.graph.node.append(node)

    def parameters(self, module: nn.Conv2d | nn.Linear) -> tuple[str, ...]:
        given = {"weight": module.weight, "bias": module.bias}
        return tuple(self.keep(f"{self.name}.{key}", one) for key, one in given.items() if one is not None)

    def keep(self, name: str, tensor: Tensor) -> str:
        array = tensor.detach().contiguous().cpu().float().numpy()
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def refuse(self, what: str) -> ModelError:
        mend = "use edgekd.stages.export.export_module, which takes any traceable module"
        return ModelError(f"the student's {self.name!r} cannot be written as ONNX", cause=what, mend=mend)


def emit(module: nn.Module, images: tuple[int, ...], logits: tuple[int, ...]) -> onnx.ModelProto:
    """Return the ONNX model of a folded student.

    Args:
        module: convolutions, linear layers, ReLU, sums, a global average pool; in evaluation mode.
        images: the input's whole shape, (1, C, r, r).
        logits: the output's whole shape, (1, classes).

    Raises:
        ModelError: the module does something else.

    """
    model = helper.make_model(
        helper.make_graph(
            [],
            "student",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, images)],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, logits)],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="edgekd",
    )
    model.ir_version = _IR_VERSION
    _walk(fx.symbolic_trace(module), model.graph)
    return model


def _walk(traced: fx.GraphModule, graph: onnx.GraphProto) -> None:
    names: dict[fx.Node, str] = {}  # of the tensor that a node gives
    result = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            names[node] = INPUT
        elif node.op != "output":
            inputs = [names[one] for one in node.args if isinstance(one, fx.Node)]
            place = _place(node)
            output = OUTPUT if node is result else f"{place}.out"
            names[node] = _write(node, traced, _Call(graph=graph, name=place, inputs=inputs, output=output))


def _write(node: fx.Node, traced: fx.GraphModule, call: _Call) -> str:
    """Write one node of the trace; return the name of the tensor that carries its result."""
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        if isinstance(module, nn.Identity):
            return call.inputs[0]
        module_writer = MODULES.get(type(module))
        if module_writer is None:
            raise call.refuse(f"there is no ONNX for a {type(module).__name__} here")
        module_writer(call, module)
        return call.output
    operation = FUNCTIONS.get(node.target) if node.op == "call_function" else None
    if operation is None or len(call.inputs) != len(node.args) or node.kwargs:
        raise call.refuse(f"there is no ONNX for {node.format_node()} here")
    call.put(operation)
    return call.output


def _place(node: fx.Node) -> str:
    """Return the path of the module, or of the module whose forward calls this function."""
    if node.op == "call_module":
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return f"{path}.{node.name}".lstrip(".")


def _conv(call: _Call, conv: nn.Conv2d) -> None:
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise call.refuse(f"it pads by {conv.padding!r}, {conv.padding_mode}")
    call.put(
        "Conv",
        call.parameters(conv),
        kernel_shape=list(conv.kernel_size),
        strides=list(conv.stride),
        pads=[*conv.padding, *conv.padding],
        dilations=list(conv.dilation),
        group=conv.groups,
    )


def _linear(call: _Call, linear: nn.Linear) -> None:
    call.put("Gemm", call.parameters(linear), transB=1)


def _relu(call: _Call, _relu_module: nn.ReLU) -> None:
    call.put("Relu")


def _global_average(call: _Call, pool: nn.AdaptiveAvgPool2d) -> None:
    if pool.output_size not in (1, (1, 1)):
        raise call.refuse(f"it pools to {pool.output_size}, not to one pixel")
    call.put("GlobalAveragePool")


def _flatten(call: _Call, flatten: nn.Flatten) -> None:
    if (flatten.start_dim, flatten.end_dim) != (1, -1):
        raise call.refuse("it does not flatten all but the batch")
    call.put("Flatten", axis=1)


MODULES: Mapping[type[nn.Module], Callable[[_Call, Any], None]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.ReLU: _relu,
    nn.AdaptiveAvgPool2d: _global_average,
    nn.Flatten: _flatten,
}
FUNCTIONS: Mapping[Any, str] = {operator.add: "Add"}
