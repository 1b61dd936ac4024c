"""Compute a graph that was just written by ONNX's own definitions, and hold it against the module it was written from.

ONNX's reference implementation knows nothing of how edgekd reads a module. Its convolutions, which would take seconds,
are computed by torch from the attributes that stand in the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

from edgekd.errors import ModelError

# Of a tensor's largest value. Sums in another order differ by a few 1e-7; a wrong stride, axis or weight by far more.
_MOST_ERROR = 1e-4
_LEAST_SCALE = 1e-3


def replay(model: onnx.ModelProto, inputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Run a model once on the example and compare every tensor that the module gave too, in order.

    Args:
        model: what was written.
        inputs: the example, by the names of the graph.
        expected: what the module gave, by the names of the graph's tensors, in the order of its layers.

    Raises:
        ModelError: one differs; the first is named.

    """
    evaluator = ReferenceEvaluator(model, new_ops=[Conv])
    given = {name: tensor.cpu().numpy() for name, tensor in inputs.items()}
    found: dict[str, Any] = evaluator.run(None, given, intermediate=True)
    for name, tensor in expected.items():
        problem = _difference(tensor.cpu().numpy(), found[name])
        if problem:
            layer = name.removesuffix(".out")
            raise ModelError(f"the student's {layer!r} was written wrongly as ONNX", cause=problem)


def _difference(expected: NDArray[Any], found: NDArray[Any]) -> str:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return f"it gives {found.dtype} {found.shape}, not {expected.dtype} {expected.shape}"
    if not expected.size:
        return ""
    scale = max(float(np.abs(expected).max()), _LEAST_SCALE)
    error = float(np.abs(found.astype(np.float64) - expected).max()) / scale
    return "" if error <= _MOST_ERROR else f"it is off by {error:.1e} of its scale"


class Conv(OpRun):  # type: ignore[misc] # onnx is untyped
    """ONNX's Conv, from its attributes; symmetric pads only, since torch knows no others."""

    op_domain = ""

    def _run(  # noqa: PLR0917 - onnx calls it with these names
        self,
        x: NDArray[Any],
        w: NDArray[Any],
        b: NDArray[Any] | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[NDArray[Any]]:
        rank = x.ndim - 2
        before, after = (pads or [0] * 2 * rank)[:rank], (pads or [0] * 2 * rank)[rank:]
        if (
            before != after
            or auto_pad not in {None, "NOTSET"}
            or list(w.shape[2:]) != list(kernel_shape or ())
        ):
            raise ModelError(
                "a convolution was written wrongly as ONNX", cause=f"pads {pads}, {kernel_shape}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights are read-only, and nobody writes into them
            tensors = [None if one is None else torch.from_numpy(one) for one in (x, w, b)]
        run: Any = {1: F.conv1d, 2: F.conv2d}[rank]
        return (run(*tensors, strides or 1, before, dilations or 1, group or 1).numpy(),)
