"""ONNX's own definitions, where its reference implementation takes too long or lacks an older version."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import Conv as ReferenceConv

OLDER_OPSET = 19  # from which on the reference implementation has Q and DQ itself

Array = NDArray[Any]


class Conv(ReferenceConv):  # type: ignore[misc] # onnx is untyped
    """A convolution whose halves are added as floats: numpy adds halves one by one, a hundred times as slowly."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Array]:
        if x.dtype != np.float16:
            found: tuple[Array] = super()._run(x, w, b, **attributes)
            return found
        wide = [None if one is None else one.astype(np.float32) for one in (x, w, b)]
        (whole,) = super()._run(*wide, **attributes)
        with np.errstate(over="ignore"):  # infinity is what fp16 makes of it
            return (whole.astype(np.float16),)


class QuantizeLinear(OpRun):  # type: ignore[misc] # onnx is untyped
    """Opset 13: round(x / scale), to even, plus the zero point, saturated."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, zero: Array | None = None, axis: int | None = None, **_: Any
    ) -> tuple[Array]:
        point = np.zeros_like(scale, dtype=np.uint8) if zero is None else zero
        limits = np.iinfo(point.dtype)
        whole = np.rint(x / _along(scale, axis, x.ndim)) + _along(point, axis, x.ndim).astype(np.float32)
        return (np.clip(whole, limits.min, limits.max).astype(point.dtype),)


class DequantizeLinear(OpRun):  # type: ignore[misc] # onnx is untyped
    """Opset 13: (x - the zero point) scale."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, zero: Array | None = None, axis: int | None = None, **_: Any
    ) -> tuple[Array]:
        whole = x.astype(np.int32)
        if zero is not None:
            whole -= _along(zero, axis, x.ndim).astype(np.int32)
        return ((whole * _along(scale, axis, x.ndim)).astype(np.float32),)


def _along(values: Array, axis: int | None, rank: int) -> Array:
    """Lay values out along an axis; one value is for all."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * rank
    shape[1 if axis is None else axis] = values.size
    return values.reshape(shape)
