"""int8 for OpenVINO: NNCF's post-training quantisation, ranges and biases corrected on calibration inputs."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import openvino as ov
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

from edgekd.backends.openvino import port_name
from edgekd.errors import ModelError
from edgekd.quantizers.calibration import Calibration
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model, Precision
from edgekd.values.order import QuantizeOrder
from edgekd.values.variant import Method, Quantization, Ranges

nncf.set_log_level(logging.ERROR)

_SEED = 0
_PART = "/WithoutBiases"  # of a convolution or product that an .onnx gives its bias
_DEFAULT = Quantization(method=Method.NNCF, symmetric=True)


def quantize(order: QuantizeOrder) -> Model:
    """Quantise a float .onnx or .xml into an OpenVINO IR.

    Raises:
        ModelError: it is quantised already, or has nothing to quantise.
        DataError: the calibration inputs cannot serve.

    """
    model, how = _read(order.model.path), order.how or _DEFAULT
    calibration = Calibration(order.calibration, _inputs(model))
    random.seed(_SEED)
    np.random.seed(_SEED)  # noqa: NPY002 - NNCF draws from the old global generator
    quantized = nncf.quantize(
        model,
        nncf.Dataset(calibration),
        preset=nncf.QuantizationPreset.PERFORMANCE if how.symmetric else nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=_float_names(model, order.model.path, how.kept)),
        advanced_parameters=_advanced(how.ranges),
    )
    if not _fake_quantized(quantized):
        raise ModelError(f"{order.model.path.name} has nothing to quantise", mend="keep it in fp32")
    _number_names(quantized)
    path = order.folder / "model.xml"
    ov.save_model(quantized, str(path), compress_to_fp16=False)
    weights = Artifact.of(path.with_suffix(".bin"))
    return Model(file=Artifact.of(path), weights=weights, precision=Precision.INT8)


def _advanced(ranges: Ranges) -> Any:
    """Say how activations' ranges are found; NNCF's default takes the mean of the rows' ends."""
    if ranges is Ranges.MINMAX:
        return None
    chosen = (
        RangeEstimatorParametersSet.HISTOGRAM
        if ranges is Ranges.ENTROPY
        else RangeEstimatorParametersSet.MEAN_QUANTILE
    )
    return nncf.AdvancedQuantizationParameters(activations_range_estimator_params=chosen)


def _float_names(model: Any, path: Path, kept: Sequence[str]) -> list[str]:
    """Return OpenVINO's names of nodes that an .onnx calls otherwise: by their outputs, and in parts."""
    if not kept:
        return []
    called = set(kept)
    if path.suffix == ".onnx":
        nodes = onnx.load(str(path), load_external_data=False).graph.node
        called |= {name for node in nodes if node.name in kept for name in node.output}
    names = [node.friendly_name for node in model.get_ops() if node.get_type_name() != "Constant"]
    return [name for name in names if name in called or name.removesuffix(_PART) in called]


def _number_names(model: Any) -> None:
    """Give nodes that OpenVINO named by a counter of the process a name by place: same order, same file."""
    for at, node in enumerate(model.get_ordered_ops()):
        kind = node.get_type_name()
        if re.fullmatch(rf"{re.escape(kind)}_\d+", node.friendly_name):
            node.friendly_name = f"{kind}_at_{at}"


def _read(path: Path) -> Any:
    try:
        model = ov.Core().read_model(str(path))
    except RuntimeError as error:
        raise ModelError(f"openvino cannot read {path.name}", cause=str(error)[:1000]) from error
    kinds = {node.get_type_name() for node in model.get_ops()}
    integers = any(
        node.get_type_name() == "Constant" and node.get_element_type() in {ov.Type.i8, ov.Type.u8}
        for node in model.get_ops()
    )
    if "FakeQuantize" in kinds or integers:
        raise ModelError(f"{path.name} is quantised already", mend="give the float model it was made from")
    return model


def _inputs(model: Any) -> dict[str, tuple[int | None, ...]]:
    return {
        port_name(port): tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)
        for port in model.inputs
    }


def _fake_quantized(model: Any) -> bool:
    return any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
