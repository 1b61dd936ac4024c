"""int8 for ONNX Runtime: explicit Q/DQ, activations u8, weights s8 a channel, ranges by minimum and maximum."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgekd.errors import ModelError
from edgekd.quantizers.calibration import Calibration
from edgekd.quantizers.float_onnx import Rows, input_shapes, is_quantized, read_float
from edgekd.timing.conditions import hardware
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model, Precision
from edgekd.values.order import QuantizeOrder


def quantize(order: QuantizeOrder) -> Model:
    """Quantise a float .onnx.

    Raises:
        ModelError: it is quantised already, or has nothing to quantise.
        DataError: the calibration inputs cannot serve.

    """
    model = read_float(order.model.path)
    calibration = Calibration(order.calibration, input_shapes(model))
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
            Rows(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            # Without VNNI, u8 x s8 products are added in 16 bits and saturate: weights get 7 bits there.
            reduce_range=not any("vnni" in feature for feature in hardware().features),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    if not is_quantized(onnx.load(str(path), load_external_data=False)):
        raise ModelError(f"{order.model.path.name} has nothing to quantise", mend="keep it in fp32")
    return Model(file=Artifact.of(path), precision=Precision.INT8)
