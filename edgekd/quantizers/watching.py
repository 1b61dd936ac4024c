"""Look into an .onnx: its layers, a copy whose inner tensors are outputs, and what ONNX itself says it computes.

A copy's new inputs and outputs are float32, whatever the graph computes in: halves are cast, and what is quantised is
taken through its own scale and zero point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.inliner import inline_local_functions

from edgekd.errors import DataError, ModelError
from edgekd.store import replacing
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model
from edgekd.values.watch import (
    Cut,
    DefineOrder,
    DefineReply,
    GraphLayer,
    GraphOrder,
    GraphReply,
    WatchOrder,
    WatchReply,
)

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_MOST_LAYERS = 20_000
_MOST_BYTES = 2_000_000_000  # of a model in one file
_SEEN = "edgekd_seen_"  # new outputs, and the nodes that give them
_SCOPES = "pkg.torch.onnx.name_scopes"  # torch.onnx's note of the modules around a node
# Of an operator that gives integers: the inputs that hold their scale and zero point.
_SCALES = {"QuantizeLinear": (1, 2), "QLinearConv": (6, 7), "QLinearMatMul": (6, 7)}
_CONTRIB_SCALES = {
    "QLinearAdd": (6, 7), "QLinearMul": (6, 7), "QLinearSigmoid": (3, 4), "QLinearLeakyRelu": (3, 4),
    "QLinearGlobalAveragePool": (3, 4), "QLinearAveragePool": (3, 4), "QLinearConcat": (0, 1), "QGemm": (7, 8),
}  # fmt: skip


@dataclass(kw_only=True)
class _Graph:
    """A model, and what is known of its tensors."""

    model: onnx.ModelProto
    kinds: dict[str, int] = field(default_factory=dict)  # element types
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    scales: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # of quantised tensors: scale, zero point
    captured: set[str] = field(default_factory=set)  # read by graphs inside

    def taken(self, tensor: str) -> bool:
        """Say whether a tensor can be looked at in float32."""
        return self.kinds.get(tensor) in _FLOATS or tensor in self.scales


def graph(order: GraphOrder) -> GraphReply:
    """List the layers of an .onnx.

    Raises:
        ModelError: it is malformed, or has more layers than anything real.

    """
    read = _read(order.model, order.shapes)
    own = {spec.name for spec in _true_inputs(read.model)}
    layers, unseen = [], 0
    for node in read.model.graph.node:
        for tensor in node.output[:1]:
            if read.taken(tensor) and own.intersection(_reads(node)):
                layers.append(_layer(node, tensor, read, own))
            unseen += not read.taken(tensor) and bool(own.intersection(_reads(node)))
        if own.intersection(_reads(node)):
            own.update(node.output)
    problems = [f"{unseen} layers give no tensor of numbers, or one of unknown type"] if unseen else []
    if any(_subgraphs(node) for node in read.model.graph.node):
        problems.append("it has control flow; what runs inside is seen as one layer")
    return GraphReply(layers=tuple(layers), problems=tuple(problems))


def watch(order: WatchOrder) -> WatchReply:
    """Write the copy.

    Raises:
        ModelError: it is malformed, has no such tensor, or is too large for one file.

    """
    read = _read(order.model)
    inputs = {cut.tensor: f"edgekd_cut_{at}" for at, cut in enumerate(order.cuts)}
    outputs = {tensor: f"{_SEEN}{at}" for at, tensor in enumerate(order.tensors)}
    missing = [name for name in (*inputs, *outputs) if not read.taken(name)]
    if missing or read.captured.intersection(inputs):
        what = (
            f"{order.model.file.path.name} cannot be taken apart at {(missing or sorted(read.captured))[0]!r}"
        )
        raise ModelError(what, cause="it is no tensor of numbers that can be replaced")
    for tensor, name in outputs.items():
        _show(read, tensor, name, cut=tensor in inputs)
    for cut in order.cuts:
        _cut(read, cut, inputs[cut.tensor])
    _sort(read.model.graph)
    content = read.model.SerializeToString()
    if len(content) > _MOST_BYTES:
        raise ModelError(f"{order.model.file.path.name} is too large to be taken apart")
    order.folder.mkdir(parents=True, exist_ok=True)
    path = order.folder / "watched.onnx"
    with replacing(path) as partial:
        partial.write_bytes(content)
    made = Model(file=Artifact.of(path), precision=order.model.precision)
    return WatchReply(model=made, outputs=outputs, inputs=inputs)


def define(order: DefineOrder) -> DefineReply:
    """Compute by ONNX's reference implementation.

    Raises:
        ModelError: the model is malformed, or holds operators that ONNX does not define.
        DataError: the inputs are not what it takes.

    """
    from onnx.reference import ReferenceEvaluator

    from edgekd.quantizers import definitions
    from edgekd.quantizers.optimize import opset_of

    model = _loaded(order.model)
    arrays = {
        name: np.load(file.verified(), mmap_mode="r", allow_pickle=False)
        for name, file in order.inputs.items()
    }
    if not arrays:
        raise DataError("there are no inputs to compute with")
    names = [value.name for value in model.graph.output]
    own: list[Any] = [definitions.Conv]
    if opset_of(model) < definitions.OLDER_OPSET:
        own += [definitions.QuantizeLinear, definitions.DequantizeLinear]
    try:
        evaluator = ReferenceEvaluator(model, new_ops=own)
        rows: list[Any] = [
            evaluator.run(names, {name: np.array(array[at]) for name, array in arrays.items()})
            for at in range(len(next(iter(arrays.values()))))
        ]
    except Exception as error:  # whatever numpy or an operator without a definition raises
        cause = f"{type(error).__name__}: {error}"[:500]
        raise ModelError(f"{order.model.file.path.name} cannot be computed in numpy", cause=cause) from error
    order.folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for at, name in enumerate(names):
        path = order.folder / f"{at}.npy"  # a file is never named by a model
        np.save(path, np.stack([row[at] for row in rows]))
        found[name] = Artifact.of(path)
    return DefineReply(outputs=found)


def _loaded(model: Model) -> onnx.ModelProto:
    path = model.file.verified()
    for file in model.external:
        file.verified()
    try:
        found = onnx.load(str(path))
        onnx.checker.check_model(str(path))
        return inline_local_functions(found) if found.functions else found
    except Exception as error:  # protobuf's and the checker's share no base
        raise ModelError(f"{path.name} is not a valid .onnx model", cause=str(error)[:1000]) from error


def _read(source: Model, shapes: Mapping[str, tuple[int, ...]] | None = None) -> _Graph:
    model = _loaded(source)
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, (shapes or {}).get(value.name, ())):
            dim.dim_value = size
    if len(model.graph.node) > _MOST_LAYERS:
        raise ModelError(f"{source.file.path.name} has more than {_MOST_LAYERS} layers")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # noqa: BLE001 - types that are declared serve too
        inferred = model.graph
    read = _Graph(model=model)
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor.HasField("shape"):
            read.kinds[value.name] = tensor.elem_type
            read.shapes[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim
            )
    for node in model.graph.node:
        places = {**_SCALES, **(_CONTRIB_SCALES if node.domain else {})}.get(node.op_type)
        if places and len(node.input) > places[1]:
            read.scales[node.output[0]] = tuple(node.input[at] for at in places)
        for inner in _subgraphs(node):
            read.captured.update(_captured(inner))
    return read


def _elements(shape: tuple[int | None, ...]) -> int | None:
    return None if None in shape else math.prod(size or 0 for size in shape)


def _true_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _layer(node: onnx.NodeProto, tensor: str, read: _Graph, own: set[str]) -> GraphLayer:
    scopes = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES), "")
    return GraphLayer(
        name=node.name or tensor,
        operator=node.op_type,
        tensor=tensor,
        elements=_elements(read.shapes.get(tensor, (None,))),
        inputs=tuple(name for name in _reads(node) if name in own),
        cuttable=tensor not in read.captured,
        origin=_innermost(scopes),
    )


def _innermost(scopes: str) -> str:
    """Return the last module of "['', 'layer1', 'layer1.0', 'conv2d']", whose last entry is the node itself."""
    names = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    return names[-2] if len(names) > 1 else ""


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for inner in _subgraphs(node):
        yield from _captured(inner)


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [
        graph for one in node.attribute for graph in (*([one.g] if one.HasField("g") else []), *one.graphs)
    ]


def _captured(inner: onnx.GraphProto) -> set[str]:
    """Name what a graph inside reads from outside."""
    made = {value.name for value in inner.input} | {tensor.name for tensor in inner.initializer}
    read: set[str] = {value.name for value in inner.output}
    for node in inner.node:
        read.update(_reads(node))
        made.update(node.output)
    return read - made


def _show(read: _Graph, tensor: str, name: str, *, cut: bool) -> None:
    """Add an output.

    Where only a QuantizeLinear reads the tensor, what that gives is shown: a second reader of the tensor itself would
    keep a runtime from computing the layer in integers.
    """
    nodes = read.model.graph.node
    readers = [node for node in nodes if tensor in node.input and not node.name.startswith(_SEEN)]
    if len(readers) == 1 and readers[0].op_type == "QuantizeLinear" and tensor not in read.scales:
        scales = read.scales.get(readers[0].output[0], ())
        whole = readers[0].output[0]
        if cut and scales:
            whole = f"{name}_quantized"
            nodes.append(_quantized("QuantizeLinear", readers[0], tensor, scales, whole))
        if scales:
            nodes.append(_quantized("DequantizeLinear", readers[0], whole, scales, name))
            _give(read, tensor, name)
            return
    if tensor in read.scales:
        node = helper.make_node("DequantizeLinear", [tensor, *read.scales[tensor]], [name], name=name)
    else:
        node = _as(tensor, name, read.kinds[tensor], TensorProto.FLOAT)
    nodes.append(node)
    _give(read, tensor, name)


def _give(read: _Graph, tensor: str, name: str) -> None:
    given = helper.make_tensor_value_info(name, TensorProto.FLOAT, read.shapes[tensor])
    read.model.graph.output.append(given)


def _quantized(
    operation: str, like: onnx.NodeProto, source: str, scales: tuple[str, ...], name: str
) -> onnx.NodeProto:
    """Return a node with another's attributes and scales."""
    made = helper.make_node(operation, [source, *scales], [name], name=name, domain=like.domain)
    made.attribute.extend(one for one in like.attribute if one.name in {"axis", "block_size"})
    return made


def _cut(read: _Graph, cut: Cut, name: str) -> None:
    """Let those who read a tensor read a new input; the tensor itself is still computed for who looks at it."""
    made = f"{name}_as_it_was"
    for node in read.model.graph.node:
        if not node.name.startswith(_SEEN):
            for at, own in enumerate(node.input):
                if own == cut.tensor:
                    node.input[at] = made
    if cut.tensor in read.scales:
        node = helper.make_node("QuantizeLinear", [name, *read.scales[cut.tensor]], [made], name=made)
    else:
        node = _as(name, made, TensorProto.FLOAT, read.kinds[cut.tensor])
    read.model.graph.node.append(node)
    read.model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, cut.shape))


def _as(source: str, name: str, kind: int, wanted: int) -> onnx.NodeProto:
    if kind == wanted:
        return helper.make_node("Identity", [source], [name], name=name)
    return helper.make_node("Cast", [source], [name], name=name, to=wanted)


def _sort(graph: onnx.GraphProto) -> None:
    """Put nodes after those that they read from."""
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    made |= {tensor.values.name for tensor in graph.sparse_initializer}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if made.issuperset(_reads(node))]
        if not ready:
            raise ModelError("the graph cannot be put in order", cause=f"{waiting[0].op_type} waits for ever")
        held = {id(node) for node in ready}
        made.update(name for node in ready for name in node.output)
        ordered += ready
        waiting = [node for node in waiting if id(node) not in held]
    del graph.node[:]
    graph.node.extend(ordered)
