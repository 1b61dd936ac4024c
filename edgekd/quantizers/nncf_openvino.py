"""int8 for OpenVINO: NNCF's post-training quantisation, ranges and biases corrected on calibration inputs."""

from __future__ import annotations

import logging
import random
import re
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov

from edgekd.backends.openvino import port_name
from edgekd.errors import ModelError
from edgekd.quantizers.calibration import Calibration
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model, Precision
from edgekd.values.order import QuantizeOrder

nncf.set_log_level(logging.ERROR)

_SEED = 0


def quantize(order: QuantizeOrder) -> Model:
    """Quantise a float .onnx or .xml into an OpenVINO IR.

    Raises:
        ModelError: it is quantised already, or has nothing to quantise.
        DataError: the calibration inputs cannot serve.

    """
    model = _read(order.model.path)
    calibration = Calibration(order.calibration, _inputs(model))
    random.seed(_SEED)
    np.random.seed(_SEED)  # noqa: NPY002 - NNCF draws from the old global generator
    quantized = nncf.quantize(model, nncf.Dataset(calibration), subset_size=len(calibration))
    if not _fake_quantized(quantized):
        raise ModelError(f"{order.model.path.name} has nothing to quantise", mend="keep it in fp32")
    _number_names(quantized)
    path = order.folder / "model.xml"
    ov.save_model(quantized, str(path), compress_to_fp16=False)
    weights = Artifact.of(path.with_suffix(".bin"))
    return Model(file=Artifact.of(path), weights=weights, precision=Precision.INT8)


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
