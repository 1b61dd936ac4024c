"""int8 for ONNX Runtime, and for whoever reads its Q/DQ: activations u8, weights s8."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from edgekd.errors import ModelError
from edgekd.quantizers.calibration import Calibration
from edgekd.quantizers.float_onnx import input_shapes, is_quantized
from edgekd.quantizers.preparing import WEIGHTED, prepared
from edgekd.quantizers.ranges import ranges_of
from edgekd.timing.conditions import hardware
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model, Precision
from edgekd.values.order import QuantizeOrder
from edgekd.values.variant import Method, Operators, Quantization

KINDS = frozenset({*QLinearOpsRegistry, *QDQRegistry})
_DEFAULT = Quantization(method=Method.STATIC)


def quantize(order: QuantizeOrder) -> Model:
    """Quantise a float .onnx.

    Raises:
        ModelError: it is quantised already, or has nothing to quantise.
        DataError: the calibration inputs cannot serve.

    """
    how = order.how or _DEFAULT
    model = prepared(order.model.path)
    calibration = Calibration(order.calibration, input_shapes(model))
    found = written(model, ranges_of(model, calibration, how.ranges), how)
    if not is_quantized(found):
        raise ModelError(f"{order.model.path.name} has nothing to quantise", mend="keep it in fp32")
    path = order.folder / "model.onnx"
    path.write_bytes(found.SerializeToString(deterministic=True))
    return Model(file=Artifact.of(path), precision=Precision.INT8)


def written(
    model: onnx.ModelProto, ranges: Any, how: Quantization, *, only: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a prepared model with Q/DQ; `only` names the nodes to quantise, none: all but those kept."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantizer = QDQQuantizer(
        copy,
        how.per_channel,
        # Without VNNI, u8 x s8 products are added in 16 bits and saturate: weights get 7 bits there.
        not any("vnni" in feature for feature in hardware().features),
        QuantType.QInt8,
        QuantType.QUInt8,
        ranges,
        sorted(only),
        list(how.kept),
        sorted(WEIGHTED if how.operators is Operators.WEIGHTED else KINDS),
        {"ActivationSymmetric": how.symmetric},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    found: onnx.ModelProto = quantizer.model.model
    return found
