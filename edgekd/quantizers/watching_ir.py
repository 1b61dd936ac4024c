"""Look into an OpenVINO IR as `watching` looks into an .onnx."""

from __future__ import annotations

import math
from typing import Any

import openvino as ov
from openvino import opset13 as ops

from edgekd.errors import ModelError
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model
from edgekd.values.watch import GraphLayer, GraphOrder, GraphReply, WatchOrder, WatchReply

_FLOATS = {"f16", "f32", "bf16", "f64"}
_STILL = {"Constant", "Parameter", "Result", "Convert", "ShapeOf"}


def graph(order: GraphOrder) -> GraphReply:
    """List the layers of an .xml, in the order in which they run.

    Raises:
        ModelError: OpenVINO cannot read it.

    """
    model = _read(order.model)
    if order.shapes:
        model.reshape({name: list(shape) for name, shape in order.shapes.items()})
    own: set[str] = set()
    layers, flow = [], False
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        sources = [_name(one.get_source_output()) for one in node.inputs()]
        if kind == "Parameter" or own.intersection(sources):
            own.update(_name(port) for port in node.outputs())
            flow = flow or kind in {"If", "Loop", "TensorIterator"}
            if kind not in _STILL and _taken(node):
                layers.append(_layer(node, tuple(name for name in sources if name in own)))
    problems = ("it has control flow; what runs inside is seen as one layer",) if flow else ()
    return GraphReply(layers=tuple(layers), problems=problems)


def watch(order: WatchOrder) -> WatchReply:
    """Write the copy: `watched.xml` and `watched.bin`.

    Raises:
        ModelError: OpenVINO cannot read it, or it has no such tensor.

    """
    model = _read(order.model)
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops() if _taken(node)}
    inputs = {cut.tensor: f"edgekd_cut_{at}" for at, cut in enumerate(order.cuts)}
    outputs = {tensor: f"edgekd_seen_{at}" for at, tensor in enumerate(order.tensors)}
    missing = [name for name in (*inputs, *outputs) if name not in nodes]
    if missing:
        raise ModelError(f"{order.model.file.path.name} has no layer {missing[0]!r}")
    readers = {cut.tensor: list(nodes[cut.tensor].output(0).get_target_inputs()) for cut in order.cuts}
    results = [_shown(nodes[tensor].output(0), name) for tensor, name in outputs.items()]
    parameters = [
        _replaced(nodes[cut.tensor].output(0), cut.shape, inputs[cut.tensor], readers[cut.tensor])
        for cut in order.cuts
    ]
    copy = ov.Model(
        [*model.get_results(), *results],
        list(model.get_sinks()),
        [*model.get_parameters(), *parameters],
        "watched",
    )
    order.folder.mkdir(parents=True, exist_ok=True)
    path = order.folder / "watched.xml"
    ov.save_model(copy, str(path), compress_to_fp16=False)
    weights = Artifact.of(path.with_suffix(".bin"))
    made = Model(file=Artifact.of(path), weights=weights, precision=order.model.precision)
    return WatchReply(model=made, outputs=outputs, inputs=inputs)


def _read(source: Model) -> Any:
    path = source.file.verified()
    if source.weights is not None:
        source.weights.verified()
    try:
        return ov.Core().read_model(str(path))
    except RuntimeError as error:
        raise ModelError(f"openvino cannot read {path.name}", cause=str(error)[:1000]) from error


def _taken(node: Any) -> bool:
    return node.get_output_size() > 0 and node.output(0).get_element_type().get_type_name() in _FLOATS


def _name(port: Any) -> str:
    return str(port.get_node().get_friendly_name())


def _layer(node: Any, inputs: tuple[str, ...]) -> GraphLayer:
    sizes = node.output(0).get_partial_shape()
    known = math.prod(size.get_length() for size in sizes) if sizes.is_static else None
    name = node.get_friendly_name()
    return GraphLayer(name=name, operator=node.get_type_name(), tensor=name, elements=known, inputs=inputs)


def _shown(port: Any, name: str) -> Any:
    whole = port if port.get_element_type() == ov.Type.f32 else ops.convert(port, "f32").output(0)
    result = ops.result(whole)
    result.set_friendly_name(name)
    result.output(0).get_tensor().set_names({name})
    return result


def _replaced(port: Any, shape: tuple[int, ...], name: str, readers: list[Any]) -> Any:
    parameter = ops.parameter(list(shape), ov.Type.f32)
    parameter.set_friendly_name(name)
    parameter.output(0).get_tensor().set_names({name})
    kind = port.get_element_type()
    given = (
        parameter.output(0) if kind == ov.Type.f32 else ops.convert(parameter, kind.get_type_name()).output(0)
    )
    for reader in readers:
        reader.replace_source_output(given)
    return parameter
