"""int8 for TensorRT: explicit Q/DQ, symmetric throughout, a scale a channel for weights and one for activations.

TensorRT takes zero points of 0 only, and fuses what the placement lets it fuse. So Q/DQ stand where NVIDIA wants
them (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html): before
every weighted operator and every average pool, and on the shortcut of a residual sum, so that the sum is fused into
the convolution of the other branch. None stands behind a weighted operator or on a bias. Each has one reader.

ONNX Runtime's quantiser computes the scales and writes the file. What it leaves open, which readers share a Q/DQ
pair, is settled before by `Identity` nodes, one for each pair, which are taken out afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from edgekd.errors import ModelError
from edgekd.quantizers.calibration import Calibration
from edgekd.quantizers.float_onnx import Rows, input_shapes, is_quantized
from edgekd.quantizers.preparing import prepared
from edgekd.quantizers.ranges import METHODS
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model, Precision
from edgekd.values.order import QuantizeOrder
from edgekd.values.variant import Method, Quantization

_FIXED_WEIGHTS = {"Conv", "ConvTranspose", "Gemm"}  # quantised where their second input is a constant
_WEIGHTED = (*_FIXED_WEIGHTS, "MatMul")
_DEFAULT = Quantization(method=Method.EXPLICIT)
_POOLS = {"AveragePool", "GlobalAveragePool"}
_OWN, _ASKING = (
    "/edgekd-own",
    "/edgekd-asking",
)  # ends of names of nodes that give a reader its own tensor, or ask


def quantize(order: QuantizeOrder) -> Model:
    """Quantise a float .onnx.

    Raises:
        ModelError: it is quantised already, or has nothing to quantise.
        DataError: the calibration inputs cannot serve.

    """
    model, how = prepared(order.model.path), order.how or _DEFAULT
    calibration = Calibration(order.calibration, input_shapes(model))
    path = order.folder / "model.onnx"
    with TemporaryDirectory(prefix="edgekd-") as scratch:
        marked, raw = (Path(scratch) / f"{name}.onnx" for name in ("marked", "raw"))
        onnx.save(_marked(model, how.kept), str(marked))
        _quantize(marked, raw, calibration, how)
        found = _unmarked(onnx.load(str(raw)))
    if not is_quantized(found):
        raise ModelError(f"{order.model.path.name} has nothing to quantise", mend="keep it in fp32 or fp16")
    check_symmetric(found)
    onnx.checker.check_model(found, full_check=True)
    path.write_bytes(found.SerializeToString(deterministic=True))
    return Model(file=Artifact.of(path), precision=Precision.INT8)


def check_symmetric(model: onnx.ModelProto) -> None:
    """Refuse a file that TensorRT would refuse, or whose scales mean nothing.

    Raises:
        ModelError: a zero point is not int8 or not 0, or a scale is not above 0.

    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        scale, zero = (constants.get(name) for name in node.input[1:3])
        known = scale is not None and zero is not None and zero.data_type == onnx.TensorProto.INT8
        if not known or np.any(numpy_helper.to_array(zero)) or not _positive(scale):
            raise ModelError(
                f"{node.name or node.output[0]} is no symmetric int8",
                mend="keep the model in fp32 or fp16, and report what it is",
            )


def _positive(scale: onnx.TensorProto) -> bool:
    values = numpy_helper.to_array(scale)
    return bool(np.all(np.isfinite(values) & (values > 0)))


def _quantize(source: Path, target: Path, calibration: Calibration, how: Quantization) -> None:
    nodes = onnx.load(str(source), load_external_data=False).graph.node
    quantize_static(
        str(source),
        str(target),
        Rows(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*_WEIGHTED, "Identity"],
        nodes_to_quantize=[node.name for node in nodes if _wanted(node)],
        per_channel=how.per_channel,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=METHODS[how.ranges],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": [*_WEIGHTED, "Identity"],
        },
    )


def _wanted(node: onnx.NodeProto) -> bool:
    """Say whether the quantiser is to look at a node; it was marked where it is."""
    return node.name.endswith(_ASKING) or (
        node.op_type in _WEIGHTED and any(name.endswith(_OWN) for name in node.input)
    )


def _marked(model: onnx.ModelProto, kept: Sequence[str] = ()) -> onnx.ModelProto:
    """Give every reader of int8 a tensor of its own, and put a node that asks for Q/DQ before those without weights.

    Nodes that are `kept` float get neither.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    shortcuts = dict(_shortcuts(graph, constants))
    nodes: list[onnx.NodeProto] = []
    for at, node in enumerate(graph.node):
        node.name = node.name or f"node_{at}_{node.op_type}"  # the quantiser is told of nodes by name
        slots = (
            _slots(node, constants) if node.op_type in _WEIGHTED else _unweighted_slots(node, at, shortcuts)
        )
        slots = () if node.name in kept else slots
        for slot in slots:
            place = f"{node.name}/{at}/{slot}"
            source, own, asked = node.input[slot], place + _OWN, place + _ASKING
            nodes.append(helper.make_node("Identity", [source], [own], name=own))
            node.input[slot] = own
            if node.op_type not in _WEIGHTED:
                nodes.append(helper.make_node("Identity", [own], [asked], name=asked))
                node.input[slot] = asked
        nodes.append(node)
    ordered = [
        onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes
    ]  # they live in the graph
    del graph.node[:]
    graph.node.extend(ordered)
    return onnx.shape_inference.infer_shapes(model)


def _slots(node: onnx.NodeProto, constants: set[str]) -> tuple[int, ...]:
    """Return which inputs of a weighted node are activations to quantise; none where its weights are computed."""
    if node.op_type in _FIXED_WEIGHTS:
        return (0,) if node.input[1] in constants and node.input[0] not in constants else ()
    return tuple(slot for slot in (0, 1) if node.input[slot] not in constants)


def _unweighted_slots(node: onnx.NodeProto, at: int, shortcuts: dict[int, int]) -> tuple[int, ...]:
    if node.op_type in _POOLS:
        return (0,)
    return (shortcuts[at],) if at in shortcuts else ()


def _shortcuts(graph: onnx.GraphProto, constants: set[str]) -> Iterator[tuple[int, int]]:
    """Yield each residual sum's place and which of its inputs is the shortcut.

    The other one is given by a weighted operator to this sum alone: the sum can be fused into that operator. Where
    both are, the shortcut is the branch with fewer nodes behind it.
    """
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, int] = {}
    for name in (*(name for node in graph.node for name in node.input), *(out.name for out in graph.output)):
        readers[name] = readers.get(name, 0) + 1
    depth: dict[str, int] = {}
    for at, node in enumerate(graph.node):
        below = 1 + max((depth.get(name, 0) for name in node.input), default=0)
        depth.update(dict.fromkeys(node.output, below))
        if node.op_type != "Add" or constants & {*node.input}:
            continue
        fusible = [
            readers[name] == 1 and _weighted(makers.get(name), makers, constants) for name in node.input
        ]
        if all(fusible):
            yield at, int(depth[node.input[0]] > depth[node.input[1]])
        elif any(fusible):
            yield at, fusible.index(False)


def _weighted(node: onnx.NodeProto | None, makers: dict[str, onnx.NodeProto], constants: set[str]) -> bool:
    """Say whether a node is a weighted operator, or adds a bias to one."""
    if node is not None and node.op_type == "Add" and len(constants & {*node.input}) == 1:
        node = next((makers[name] for name in node.input if name in makers), None)
    return node is not None and node.op_type in _WEIGHTED


def _unmarked(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take the marking nodes out again; what read them reads what they read."""
    graph = model.graph
    sources = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.name.endswith((_OWN, _ASKING))
    }
    kept = [node for node in graph.node if not (node.output and node.output[0] in sources)]
    for node in kept:
        for slot, name in enumerate(node.input):
            while name in sources:
                name = sources[name]  # noqa: PLW2901 - followed to its source
            node.input[slot] = name
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    left = [value for value in graph.value_info if not value.name.endswith((_OWN, _ASKING))]
    values = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in left]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(ordered)
    graph.value_info.extend(values)
    return model
