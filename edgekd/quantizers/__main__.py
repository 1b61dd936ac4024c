"""`python -m edgekd.quantizers --memory-mib N`: serve orders to quantise, or to cast to fp16, from standard input."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from types import ModuleType
from typing import cast

from edgekd.errors import ModelError, UsageError
from edgekd.values.codec import did_you_mean
from edgekd.values.halving import HalveOrder, HalveReply
from edgekd.values.model import Model
from edgekd.values.order import OptimizeOrder, OptimizeReply, QuantizeOrder
from edgekd.wire import Handler, limit_memory, serve

# The method that suits each runtime; NNCF's models ran 2.4x slower than fp32 in ONNX Runtime.
_MODULES = {
    "onnxruntime": "edgekd.quantizers.onnxruntime_static",
    "openvino": "edgekd.quantizers.nncf_openvino",
    "rehearsal": "edgekd.quantizers.onnxruntime_static",
    "tensorrt": "edgekd.quantizers.explicit_qdq",
    "tensorrt-dla": "edgekd.quantizers.explicit_qdq",
    "tensorrt-graph": "edgekd.quantizers.explicit_qdq",
    "trtexec": "edgekd.quantizers.explicit_qdq",
}


def quantize(order: QuantizeOrder) -> Model:
    """Carry out one order by the method that suits its runtime.

    Raises:
        UsageError: no method is known for the runtime.
        ModelError: the model is quantised already, malformed, or has nothing to quantise.
        DataError: the calibration inputs are empty, constant, not finite, or do not fit the model.

    """
    if order.runtime not in _MODULES:
        raise UsageError(
            f"nothing quantises for {order.runtime!r}", mend=did_you_mean(order.runtime, list(_MODULES))
        )
    path = order.model.verified()
    order.folder.mkdir(parents=True, exist_ok=True)
    method = importlib.import_module(_MODULES[order.runtime])
    try:
        return cast("Model", method.quantize(order))
    except (
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
    ) as error:  # from inside the library
        cause = f"{type(error).__name__}: {error}"[:1000]
        raise ModelError(f"{path.name} cannot be quantised for {order.runtime}", cause=cause) from error


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
            "halve": Handler(order=HalveOrder, carry_out=halve),
            "optimize": Handler(order=OptimizeOrder, carry_out=optimize),
        }
    )


if __name__ == "__main__":
    main(sys.argv[1:])
