"""`python -m edgekd.quantizers --memory-mib N`: serve orders to quantise, or to cast to fp16, from standard input."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast

from edgekd.errors import EdgekdError, ModelError, UsageError
from edgekd.values.codec import did_you_mean
from edgekd.values.halving import HalveOrder, HalveReply
from edgekd.values.model import Model
from edgekd.values.order import (
    OptimizeOrder,
    OptimizeReply,
    QuantizeOrder,
    RankOrder,
    RankReply,
    SurveyOrder,
    SurveyReply,
)
from edgekd.values.variant import Method
from edgekd.values.watch import DefineOrder, DefineReply, GraphOrder, GraphReply, WatchOrder, WatchReply
from edgekd.wire import Handler, limit_memory, serve

_MODULES = {
    Method.STATIC: "edgekd.quantizers.onnxruntime_static",
    Method.NNCF: "edgekd.quantizers.nncf_openvino",
    Method.EXPLICIT: "edgekd.quantizers.explicit_qdq",
}
# The method that suits each runtime; NNCF's models ran 2.4x slower than fp32 in ONNX Runtime.
_METHODS = {
    "onnxruntime": Method.STATIC,
    "openvino": Method.NNCF,
    "rehearsal": Method.STATIC,
    "tensorrt": Method.EXPLICIT,
    "tensorrt-dla": Method.EXPLICIT,
    "tensorrt-graph": Method.EXPLICIT,
    "trtexec": Method.EXPLICIT,
}


def quantize(order: QuantizeOrder) -> Model:
    """Carry out one order by the method it names, else by the one that suits its runtime.

    Raises:
        UsageError: no method is known for the runtime.
        ModelError: the model is quantised already, malformed, or has nothing to quantise.
        DataError: the calibration inputs are empty, constant, not finite, or do not fit the model.

    """
    if order.runtime not in _METHODS:
        raise UsageError(
            f"nothing quantises for {order.runtime!r}", mend=did_you_mean(order.runtime, list(_METHODS))
        )
    path = order.model.verified()
    order.folder.mkdir(parents=True, exist_ok=True)
    method = importlib.import_module(_MODULES[order.how.method if order.how else _METHODS[order.runtime]])
    with _its_own_errors(f"{path.name} cannot be quantised for {order.runtime}"):
        return cast("Model", method.quantize(order))


def survey(order: SurveyOrder) -> SurveyReply:
    """Prepare a float .onnx, and say what calibration does not cover.

    Raises:
        ModelError: it is malformed, quantised already, or has nothing to quantise.
        DataError: the calibration inputs cannot serve.

    """
    with _its_own_errors(f"{order.model.path.name} cannot be prepared for int8"):
        return cast("SurveyReply", importlib.import_module("edgekd.quantizers.surveying").survey(order))


def rank(order: RankOrder) -> RankReply:
    """Say how far each segment, quantised alone, moves the outputs.

    Raises:
        ModelError: it is malformed, or quantised already.
        DataError: the inputs cannot serve.

    """
    with _its_own_errors(f"the layers of {order.model.path.name} cannot be ranked"):
        return cast("RankReply", importlib.import_module("edgekd.quantizers.surveying").rank(order))


@contextmanager
def _its_own_errors(what: str) -> Iterator[None]:
    """Turn what a library raises from its inside into an error of ours."""
    try:
        yield
    except EdgekdError:
        raise
    except Exception as error:  # ONNX Runtime's share no base of their own
        raise ModelError(what, cause=f"{type(error).__name__}: {error}"[:1000]) from error


def optimize(order: OptimizeOrder) -> OptimizeReply:
    """Simplify the graph of an .onnx.

    Raises:
        ModelError: it is malformed, or cannot be converted to the opset.

    """
    order.folder.mkdir(parents=True, exist_ok=True)
    return importlib.import_module("edgekd.quantizers.optimize").optimize(order)  # type: ignore[no-any-return]


def halve(order: HalveOrder) -> HalveReply:
    """Cast the graph of a float .onnx to fp16.

    Raises:
        ModelError: it is malformed, not in fp32, or the converter fails on it.
        DataError: the samples are not what it takes.

    """
    return importlib.import_module("edgekd.quantizers.halving").halve(order)  # type: ignore[no-any-return]


def graph(order: GraphOrder) -> GraphReply:
    """List the layers of a model.

    Raises:
        ModelError: it is malformed.

    """
    return _watching(order.model).graph(order)  # type: ignore[no-any-return]


def watch(order: WatchOrder) -> WatchReply:
    """Copy a model so that tensors inside can be seen, and replaced.

    Raises:
        ModelError: it is malformed, or has no such tensor.

    """
    return _watching(order.model).watch(order)  # type: ignore[no-any-return]


def define(order: DefineOrder) -> DefineReply:
    """Compute an .onnx by ONNX's own definitions.

    Raises:
        ModelError: it is malformed, or holds what ONNX does not define.
        DataError: the inputs are not what it takes.

    """
    return importlib.import_module("edgekd.quantizers.watching").define(order)  # type: ignore[no-any-return]


def _watching(model: Model) -> ModuleType:
    name = "watching_ir" if model.file.path.suffix == ".xml" else "watching"
    return importlib.import_module(f"edgekd.quantizers.{name}")


def main(arguments: list[str]) -> None:
    """Serve orders until standard input ends.

    Raises:
        UsageError: the arguments are not `--memory-mib N`.

    """
    if len(arguments) != 2 or arguments[0] != "--memory-mib" or not arguments[1].isdigit():  # noqa: PLR2004 - a flag and its value
        raise UsageError("the quantiser takes --memory-mib N", mend="let edgekd start it")
    limit_memory(int(arguments[1]))
    # NNCF imports torch where it finds it: three seconds and 250 MB that a model of OpenVINO's has no use for.
    sys.modules["torch"] = cast("ModuleType", None)
    # OpenVINO's packages report to their maker when they find this one.
    sys.modules["openvino_telemetry"] = cast("ModuleType", None)
    warnings.simplefilter("ignore")  # the libraries' own, to nobody
    logging.disable(logging.WARNING)
    serve(
        {
            "quantize": Handler(order=QuantizeOrder, carry_out=quantize),
            "survey": Handler(order=SurveyOrder, carry_out=survey),
            "rank": Handler(order=RankOrder, carry_out=rank),
            "halve": Handler(order=HalveOrder, carry_out=halve),
            "optimize": Handler(order=OptimizeOrder, carry_out=optimize),
            "graph": Handler(order=GraphOrder, carry_out=graph),
            "watch": Handler(order=WatchOrder, carry_out=watch),
            "define": Handler(order=DefineOrder, carry_out=define),
        }
    )


if __name__ == "__main__":
    main(sys.argv[1:])
