"""The float graph that quantisers start from: batch norms folded, every node named, every shape known."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization.quant_utils import model_has_pre_process_metadata
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgekd.quantizers.float_onnx import read_float
from edgekd.values.variant import Segment

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def prepared(path: Path) -> onnx.ModelProto:
    """Prepare a float .onnx for quantisation; one that was prepared is read as it is.

    Raises:
        ModelError: it is malformed, or quantised already.

    """
    model = read_float(path)
    if model_has_pre_process_metadata(model):
        return model
    with TemporaryDirectory(prefix="edgekd-") as scratch:
        read, made = Path(scratch) / "read.onnx", Path(scratch) / "prepared.onnx"
        onnx.save(model, str(read))
        quant_pre_process(str(read), str(made), skip_symbolic_shape=True)
        model = onnx.load(str(made))
    _name_nodes(model)
    return model


def segments(model: onnx.ModelProto) -> tuple[Segment, ...]:
    """Cut a prepared graph at its weighted nodes; what comes before the first belongs to none."""
    constants = {tensor.name for tensor in model.graph.initializer}
    heads: dict[str, int] = {}  # tensor -> place of the segment that gives it
    found: list[list[onnx.NodeProto]] = []
    for node in model.graph.node:
        before = [heads[name] for name in node.input if name in heads]
        if node.op_type in WEIGHTED and any(name not in constants for name in node.input):
            found.append([node])
            at = len(found) - 1
        elif before:
            at = max(before)
            found[at].append(node)
        else:
            continue
        heads.update(dict.fromkeys(node.output, at))
    return tuple(
        Segment(
            name=nodes[0].name,
            kind=nodes[0].op_type,
            nodes=tuple(node.name for node in nodes),
            tensors=tuple(name for node in nodes for name in node.output),
        )
        for nodes in found
    )


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own: they are spoken of by name."""
    seen: set[str] = set()
    for at, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_at_{at}"
        seen.add(node.name)
