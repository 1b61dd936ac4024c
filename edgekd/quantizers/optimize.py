"""Simplify the graph of a float .onnx: constants folded, dead nodes dropped, inputs and outputs as they were."""

from __future__ import annotations

import onnx
from onnx import version_converter
from onnxscript import optimizer

from edgekd.errors import ModelError
from edgekd.store import replacing
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model
from edgekd.values.order import OptimizeOrder, OptimizeReply


def optimize(order: OptimizeOrder) -> OptimizeReply:
    """Carry out the order; what cannot be simplified is kept as it is.

    Raises:
        ModelError: it is malformed, or cannot be converted to the opset.

    """
    path = order.model.verified()
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's share no base
        raise ModelError(f"{path.name} is not a valid .onnx model", cause=str(error)[:1000]) from error
    if order.opset is not None and order.opset != opset_of(model):
        model = _converted(model, order.opset, path.name)
    model = _simplified(model)
    written = order.folder / "model.onnx"
    with replacing(written) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))
    return OptimizeReply(model=Model(file=Artifact.of(written)), opset=opset_of(model))


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 1)


def _converted(model: onnx.ModelProto, opset: int, name: str) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:  # the converter's C++ raises RuntimeError and its own
        cause = " ".join(str(error).split())[:500]
        mend = "leave --opset out, or export from the module the file was made from"
        raise ModelError(f"{name} cannot be converted to opset {opset}", cause=cause, mend=mend) from error


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    names = [[value.name for value in values] for values in (model.graph.input, model.graph.output)]
    try:
        found: onnx.ModelProto = optimizer.optimize(model)
        onnx.checker.check_model(found, full_check=True)
    except Exception:  # noqa: BLE001 - an optimisation that fails, in whichever way, is left out
        return model
    kept = [[value.name for value in values] for values in (found.graph.input, found.graph.output)]
    return found if kept == names else model
