"""What ONNX Runtime's quantiser is given: a float .onnx that was checked, and calibration rows one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import version_converter
from onnxruntime.quantization import CalibrationDataReader

from edgekd.errors import ModelError
from edgekd.quantizers.calibration import Calibration

_LEAST_OPSET = 13  # the first whose Q/DQ have scales a channel
_QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
    "DynamicQuantizeLinear",
}  # fmt: skip


class Rows(CalibrationDataReader):  # type: ignore[misc]
    """Hands the rows over one by one, as the library asks for them."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._rows: Iterator[dict[str, NDArray[Any]]] = iter(calibration)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._rows, None)

    def rewind(self) -> None:
        self._rows = iter(self._calibration)


def read_float(path: Path) -> onnx.ModelProto:
    """Read a float .onnx, of an opset whose Q/DQ have a scale a channel, with its true inputs only.

    Raises:
        ModelError: it is malformed, or quantised already.

    """
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's share no base
        raise ModelError(f"{path.name} is not a valid .onnx model", cause=str(error)[:1000]) from error
    if is_quantized(model):
        raise ModelError(f"{path.name} is quantised already", mend="give the float model it was made from")
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]  # old files list their weights as inputs, which keeps them from being folded
    model.graph.input.extend(inputs)
    opset = next((entry.version for entry in model.opset_import if not entry.domain), _LEAST_OPSET)
    if opset < _LEAST_OPSET:
        return version_converter.convert_version(model, _LEAST_OPSET)
    return model


def input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Return the shape of each input; a dynamic dimension is None."""
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
    }


def is_quantized(model: onnx.ModelProto) -> bool:
    """Say whether a model carries int8 inside."""
    return any(node.op_type in _QUANTIZED for node in model.graph.node)
