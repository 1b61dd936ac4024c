"""fp16 for TensorRT, which computes in what the graph says: the graph itself is cast.

ONNX Runtime's own converter does the casting; here it is decided what must stay in fp32. The largest finite fp16 is
65504: what came near it on real inputs stays, and so do operators whose insides overflow before their outputs do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekd.errors import DataError, ModelError
from edgekd.quantizers.rounding import is_float, rounded_copy
from edgekd.values.artifact import Artifact
from edgekd.values.halving import HalveOrder, HalveReply
from edgekd.values.model import Model, Precision

_LARGEST = 65504.0
_HEADROOM = 4.0  # other inputs may reach so many times as far as the samples
_SQUARING = {
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceSumSquare",
    "ReduceProd",
    "Pow",
    "LpNormalization",
    "Softplus",
}
_QUANTIZED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
}

Arrays = dict[str, NDArray[Any]]


def halve(order: HalveOrder) -> HalveReply:
    """Cast one model.

    Raises:
        ModelError: it is malformed, not in fp32, or the converter fails on it.
        DataError: the samples are not what it takes.

    """
    path = order.model.verified()
    order.folder.mkdir(parents=True, exist_ok=True)
    model = _read(path)
    rows = _rows(order, model)
    expected, largest = _observed(model, rows)
    kept = tuple(_overflowing(model, largest))
    half = _cast(path, model, kept)
    target = order.folder / "model.onnx"
    onnx.save(half, str(target))
    found = list(_answers(half, rows))
    rounded = list(_answers(rounded_copy(model, kept), rows))
    return HalveReply(
        model=Model(file=Artifact.of(target), precision=Precision.FP16),
        kept=kept,
        expected=_written(order.folder / "expected", expected),
        found=_written(order.folder / "found", found),
        rounded=_written(order.folder / "rounded", rounded),
    )


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # protobuf's and the checker's share no base
        raise ModelError(f"{path.name} is not a valid .onnx model", cause=str(error)[:1000]) from error
    operators = {node.op_type for node in model.graph.node}
    if operators & _QUANTIZED:
        raise ModelError(f"{path.name} is quantised", mend="give the float model it was made from")
    for number, node in enumerate(model.graph.node):  # nodes are kept by name, and need not have one
        node.name = node.name or f"node_{number}_{node.op_type}"
    return model


def _rows(order: HalveOrder, model: onnx.ModelProto) -> list[Arrays]:
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in constants]
    if sorted(names) != sorted(order.samples):
        raise DataError(f"the model takes {names}, and the samples are of {list(order.samples)}")
    columns = {
        name: np.load(file.verified(), allow_pickle=False, mmap_mode="r")
        for name, file in order.samples.items()
    }
    count = min([order.most_rows, *map(len, columns.values())])
    if count == 0:
        raise DataError("there are no samples to look at", mend="give at least one")
    return [{name: np.array(column[at]) for name, column in columns.items()} for at in range(count)]


def _observed(model: onnx.ModelProto, rows: list[Arrays]) -> tuple[list[Arrays], dict[str, float]]:
    """Run the fp32 model; return its outputs for each row, and the largest magnitude of every float tensor."""
    outputs = [value.name for value in model.graph.output]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    floats = {value.name: value for value in inferred if is_float(value)}
    watched.graph.output.extend(value for name, value in floats.items() if name not in outputs)
    largest: dict[str, float] = {
        tensor.name: _magnitude(onnx.numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    kept: list[Arrays] = []
    for row, answers in zip(rows, _answers(watched, rows)):
        for name, array in (*row.items(), *answers.items()):
            largest[name] = max(largest.get(name, 0.0), _magnitude(array))
        kept.append({name: answers[name] for name in outputs})
    return kept, largest


def _overflowing(model: onnx.ModelProto, largest: Mapping[str, float]) -> Iterator[str]:
    """Yield the nodes that must stay in fp32."""
    for node in model.graph.node:
        seen = max((largest.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
        squared = node.op_type in _SQUARING and seen > np.sqrt(_LARGEST) / _HEADROOM
        if not seen * _HEADROOM < _LARGEST or squared:  # so that NaN stays too
            yield node.name


def _cast(path: Path, model: onnx.ModelProto, kept: tuple[str, ...]) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    source = onnx.ModelProto()
    source.CopyFrom(model)  # the converter works in place
    try:
        half = convert_float_to_float16(source, keep_io_types=True, node_block_list=list(kept))
        _joined(half, {node.name for node in model.graph.node})
        OnnxModel.graph_topological_sort(half.graph, is_deterministic=True)  # it puts its casts last
        onnx.checker.check_model(half, full_check=True)
    except Exception as error:  # whatever the library raises
        cause = f"{type(error).__name__}: {error}"[:1000]
        raise ModelError(f"{path.name} cannot be cast to fp16", cause=cause) from error
    return cast("onnx.ModelProto", half)


def _joined(half: onnx.ModelProto, own: set[str]) -> None:
    """Let neighbours that stay in fp32 hand over fp32.

    The converter casts what one gives to fp16, where it overflows, and back for the next one. Casts of the model's
    own, whose names are in `own`, are left alone.
    """
    added = {
        node.output[0]: node for node in half.graph.node if node.op_type == "Cast" and node.name not in own
    }
    to = {name: onnx.helper.get_node_attr_value(node, "to") for name, node in added.items()}
    for name, node in added.items():
        before = added.get(node.input[0])
        if (
            before is None
            or to[name] != onnx.TensorProto.FLOAT
            or to[before.output[0]] != onnx.TensorProto.FLOAT16
        ):
            continue
        node.input[0] = before.input[0]  # of fp32: a cast from fp32 to fp32 is nothing
    used = {name for node in half.graph.node for name in node.input} | {out.name for out in half.graph.output}
    for name, node in added.items():
        if name not in used:
            half.graph.node.remove(node)


def _answers(model: onnx.ModelProto, rows: list[Arrays]) -> Iterator[Arrays]:
    """Run a model as it is written: optimisation would fold the casts that are to be looked at."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # fatal
    options.intra_op_num_threads = 1
    names = [value.name for value in model.graph.output]
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for row in rows:
            yield dict(zip(names, session.run(names, row)))
    except Exception as error:  # its exceptions share no base of their own
        cause = f"{type(error).__name__}: {error}"[:1000]
        raise ModelError("ONNX Runtime cannot run the model on these samples", cause=cause) from error


def _magnitude(array: NDArray[Any]) -> float:
    return float(np.abs(array).max(initial=0.0)) if array.dtype.kind == "f" else 0.0


def _written(folder: Path, rows: list[Arrays]) -> dict[str, Artifact]:
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for number, name in enumerate(rows[0]):  # a file is never named by a model
        path = folder / f"{number}.npy"
        np.save(path, np.stack([row[name] for row in rows]))
        written[name] = Artifact.of(path)
    return written
