"""Write a float graph's explicit Q/DQ from grids that were recorded, for students that learned them.

Exporters fail on modules that simulate rounding; here the float graph is exported and the integers are written in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import ModelError
from edgekd.values.quantization import Grid

_INT4_OPSET, _INT4_IR = 21, 10  # the first that hold 4-bit weights
_NIBBLE = 7
_KINDS: dict[int, Any] = {
    TensorProto.INT8: np.int8,
    TensorProto.UINT8: np.uint8,
    TensorProto.INT32: np.int32,
}
_WEIGHTED = {"Conv", "Gemm", "MatMul"}


def integers_of(array: NDArray[np.float32], grid: Grid, axis: int = 0) -> NDArray[np.int64]:
    """Round an array to a grid as QuantizeLinear does: divided in float32, half to even, clamped.

    Args:
        array: floats.
        grid: its zero point is added.
        axis: of the output channels, where the grid has a scale for each.

    """
    scales = np.array(grid.scales, np.float32)
    if len(scales) > 1:
        scales = scales.reshape([-1 if at == axis else 1 for at in range(array.ndim)])
    found = np.rint(array.astype(np.float32) / scales).astype(np.float64) + grid.zero_point
    whole: NDArray[np.int64] = np.clip(found, grid.low, grid.high).astype(np.int64)
    return whole


def qdq_from(
    model: onnx.ModelProto,
    grids: Mapping[str, Grid],
    *,
    integer_bias: bool,
    own_pairs: bool,
    packed: bool = False,
) -> onnx.ModelProto:
    """Return the graph with its weights as integers and its activations rounded.

    Args:
        model: float, weights as initialisers with the output channel first; is not changed.
        grids: by tensor: initialisers that hold weights, and activations.
        integer_bias: write biases as int32, as ONNX Runtime's kernels take them; TensorRT takes floats only.
        own_pairs: give each reader a pair of its own, as TensorRT fuses them best.
        packed: write weights that fit into 4 bits as INT4.

    Raises:
        ModelError: a tensor is not in the graph, a grid is not one of 8 bits, or a scale means nothing.

    """
    written = onnx.ModelProto()
    written.CopyFrom(model)
    graph = written.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    _refuse(graph, grids, weights)
    made = _Made(graph, own_pairs=own_pairs)
    if packed:
        _raise_opset(written)
    products = {node.input[1]: node for node in graph.node if node.op_type in _WEIGHTED}
    for name in sorted(grids.keys() & weights.keys()):
        axis = 1 if products[name].op_type == "MatMul" else 0
        made.weight(name, weights[name], grids[name], axis=axis, packed=packed)
    if integer_bias:
        for node in graph.node:
            if node.op_type in _WEIGHTED and len(node.input) > 2 and node.input[1] in grids:  # noqa: PLR2004
                made.bias(node.input[2], weights[node.input[2]], grids[node.input[0]], grids[node.input[1]])
    made.activations({name: grid for name, grid in grids.items() if name not in weights})
    return written


class _Made:
    """What is put into one graph."""

    def __init__(self, graph: onnx.GraphProto, *, own_pairs: bool) -> None:
        self._graph = graph
        self._own_pairs = own_pairs
        self._front: list[onnx.NodeProto] = []  # of weights and biases

    def weight(self, name: str, array: NDArray[np.float32], grid: Grid, *, axis: int, packed: bool) -> None:
        kind = TensorProto.INT4 if packed and grid.high <= _NIBBLE else TensorProto.INT8
        self._constant(name, integers_of(array, grid, axis), grid.scales, kind, axis)

    def bias(self, name: str, array: NDArray[np.float32], inputs: Grid, weight: Grid) -> None:
        scales = np.float32(inputs.scales[0]) * np.array(weight.scales, np.float32)
        whole = np.rint(array / scales).astype(np.int64)
        self._constant(name, whole, tuple(scales.tolist()), TensorProto.INT32, 0)

    def _constant(
        self, name: str, integers: NDArray[np.int64], scales: tuple[float, ...], kind: int, axis: int
    ) -> None:
        (place,) = (at for at, one in enumerate(self._graph.initializer) if one.name == name)
        del self._graph.initializer[place]
        own = f"{name}/integers"
        self._keep(_tensor(own, integers, kind))
        scale = self._scale(name, scales)
        zeros = np.zeros(len(scales) if len(scales) > 1 else (), np.int64)
        zero = self._keep(_tensor(f"{name}/zero", zeros, kind))
        node = helper.make_node(
            "DequantizeLinear", [own, scale, zero], [name], name=f"{name}/dequantized", axis=axis
        )
        self._front.append(node)

    def activations(self, grids: Mapping[str, Grid]) -> None:
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self._graph.node]
        pairs = {name: self._pairs(name, grid, nodes) for name, grid in grids.items()}
        ordered = [*self._front]
        for value in self._graph.input:
            ordered += pairs.get(value.name, [])
        for node in nodes:
            ordered += [node, *(one for name in node.output for one in pairs.get(name, []))]
        del self._graph.node[:], self._graph.value_info[:]
        self._graph.node.extend(ordered)

    def _pairs(self, name: str, grid: Grid, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Make what stands between a tensor and its readers, and have them read it."""
        readers = [(node, slot) for node in nodes for slot, read in enumerate(node.input) if read == name]
        if not readers:
            return []
        scale = self._scale(name, grid.scales)
        kind = TensorProto.INT8 if grid.low < 0 else TensorProto.UINT8
        zero = self._keep(_tensor(f"{name}/zero", np.array(grid.zero_point, np.int64), kind))
        found = []
        for number, (node, slot) in enumerate(readers):
            own = f"{name}/{number}" if self._own_pairs else name
            if number == 0 or self._own_pairs:
                found += _pair(name, own, scale, zero)
            node.input[slot] = f"{own}/real"
        return found

    def _scale(self, name: str, scales: tuple[float, ...]) -> str:
        array = np.array(scales if len(scales) > 1 else scales[0], np.float32)
        return self._keep(numpy_helper.from_array(array, f"{name}/scale"))

    def _keep(self, tensor: onnx.TensorProto) -> str:
        self._graph.initializer.append(tensor)
        return str(tensor.name)


def _tensor(name: str, integers: NDArray[np.int64], kind: int) -> onnx.TensorProto:
    """Return integers as a tensor; those of 4 bits two to a byte, the first in its lower half."""
    if kind in _KINDS:
        return numpy_helper.from_array(integers.astype(_KINDS[kind]), name)
    halves = np.append(integers.flatten(), np.zeros(integers.size % 2, np.int64)) & 15
    packed = (halves[::2] | halves[1::2] << 4).astype(np.uint8)
    return helper.make_tensor(name, kind, integers.shape, packed.tobytes(), raw=True)


def _pair(name: str, own: str, scale: str, zero: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{own}/integers"], name=f"{own}/quantized"),
        helper.make_node(
            "DequantizeLinear", [f"{own}/integers", scale, zero], [f"{own}/real"], name=f"{own}/dequantized"
        ),
    ]


def _refuse(graph: onnx.GraphProto, grids: Mapping[str, Grid], weights: Mapping[str, Any]) -> None:
    known = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
    for name, grid in grids.items():
        if name not in known | weights.keys():
            raise ModelError(
                f"the graph has no tensor {name!r}", mend="export the student that the grids are of"
            )
        if not all(np.isfinite(scale) and scale > 0 for scale in grid.scales):
            raise ModelError(f"a scale of {name!r} is not above 0", mend="calibrate the student again")
        if name not in weights and (grid.low, grid.high) not in {(0, 255), (-128, 127)}:
            raise ModelError(
                f"{name!r} is rounded to {grid.low}...{grid.high}",
                cause="no runtime here has activations of fewer than 8 bits",
                mend="simulate it, or give activations 8 bits",
            )


def _raise_opset(model: onnx.ModelProto) -> None:
    for entry in model.opset_import:
        if entry.domain in {"", "ai.onnx"}:
            entry.version = max(entry.version, _INT4_OPSET)
    model.ir_version = max(model.ir_version, _INT4_IR)
