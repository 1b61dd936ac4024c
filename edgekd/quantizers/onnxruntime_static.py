"""int8 for ONNX Runtime: explicit Q/DQ, activations u8, weights s8 a channel, ranges by minimum and maximum."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import version_converter
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgekd.errors import ModelError
from edgekd.quantizers.calibration import Calibration
from edgekd.timing.conditions import hardware
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model, Precision
from edgekd.values.order import QuantizeOrder

_LEAST_OPSET = 13  # the first whose Q/DQ have scales a channel
_QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
    "DynamicQuantizeLinear",
}  # fmt: skip


def quantize(order: QuantizeOrder) -> Model:
    """Quantise a float .onnx.

    Raises:
        ModelError: it is quantised already, or has nothing to quantise.
        DataError: the calibration inputs cannot serve.

    """
    model = _read(order.model.path)
    calibration = Calibration(order.calibration, _inputs(model))
    path = order.folder / "model.onnx"
    with TemporaryDirectory(prefix="edgekd-") as scratch:
        read, prepared = Path(scratch) / "read.onnx", Path(scratch) / "prepared.onnx"
        onnx.save(model, str(read))
        quant_pre_process(
            str(read), str(prepared), skip_symbolic_shape=True
        )  # folds batch norms, infers shapes
        quantize_static(
            str(prepared),
            str(path),
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            # Without VNNI, u8 x s8 products are added in 16 bits and saturate: weights get 7 bits there.
            reduce_range=not any("vnni" in feature for feature in hardware().features),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    if not _quantized(onnx.load(str(path), load_external_data=False)):
        raise ModelError(f"{order.model.path.name} has nothing to quantise", mend="keep it in fp32")
    return Model(file=Artifact.of(path), precision=Precision.INT8)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the rows over one by one, as the library asks for them."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._rows: Iterator[dict[str, NDArray[Any]]] = iter(calibration)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._rows, None)

    def rewind(self) -> None:
        self._rows = iter(self._calibration)


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's share no base
        raise ModelError(f"{path.name} is not a valid .onnx model", cause=str(error)[:1000]) from error
    if _quantized(model):
        raise ModelError(f"{path.name} is quantised already", mend="give the float model it was made from")
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]  # old files list their weights as inputs, which keeps them from being folded
    model.graph.input.extend(inputs)
    opset = next((entry.version for entry in model.opset_import if not entry.domain), _LEAST_OPSET)
    if opset < _LEAST_OPSET:
        return version_converter.convert_version(model, _LEAST_OPSET)
    return model


def _inputs(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
    }


def _quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type in _QUANTIZED for node in model.graph.node)
