"""Which int8 forms a runtime can be given, in the order of what is expected of them."""

from __future__ import annotations

from dataclasses import replace

from edgekd.backends import TYPED
from edgekd.values.variant import Method, Operators, Quantization, Ranges

_STATIC = Quantization(method=Method.STATIC)
_NNCF = Quantization(method=Method.NNCF, symmetric=True)
_ORDERS: dict[str, tuple[Quantization, ...]] = {
    "onnxruntime": (
        _STATIC,
        replace(_STATIC, operators=Operators.WEIGHTED),
        replace(_STATIC, per_channel=False),
    ),
    # NNCF's own, and the Q/DQ of ONNX Runtime's quantiser, which OpenVINO reads as well.
    "openvino": (_NNCF, replace(_NNCF, symmetric=False), _STATIC),
    "rehearsal": (_STATIC, replace(_STATIC, operators=Operators.WEIGHTED)),
}
_EXPLICIT = (Quantization(method=Method.EXPLICIT),)


def structures(runtime: str, suffix: str) -> tuple[Quantization, ...]:
    """Return the forms whose latencies differ, the one that suits the runtime first.

    NNCF's files are not for ONNX Runtime: they ran 2.4 times as slow as fp32 there. TensorRT takes explicit and
    symmetric Q/DQ only.

    Args:
        runtime: whose files they are.
        suffix: of the float file; `.xml` can be quantised by NNCF alone.

    """
    known = _EXPLICIT if runtime in TYPED else _ORDERS.get(runtime, (_STATIC,))
    return tuple(one for one in known if suffix == ".onnx" or one.method is Method.NNCF)


def with_ranges(structure: Quantization) -> tuple[Quantization, ...]:
    """Return the ways to find its ranges, the quickest first; they cost no latency."""
    return tuple(replace(structure, ranges=ranges) for ranges in Ranges)
