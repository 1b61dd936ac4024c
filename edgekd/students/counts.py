"""Numbers that predict what a student costs and can learn, counted from its layers without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgekd.students.shapes import Layer

_STAGES = 4  # slots, so that every student has as many features

NAMES = (
    "log10_macs",
    "log10_params",
    "log10_activations",
    *(f"log10_macs_stage_{stage}" for stage in range(_STAGES)),
    "layers",
    "macs_share_depthwise",
    "macs_share_pointwise",
    "macs_share_kernel_5",
    "macs_millions_dense",
    "macs_millions_pointwise",
    "macs_millions_depthwise",
    "activations_millions",
    "params_millions",
    "largest_activation_millions",
    "resolution",
)


COST_NAMES = ("starts", "layers", "dense_macs_millions", "depthwise_macs_millions", "traffic_millions")


def costs(layers: Sequence[Layer]) -> tuple[float, ...]:
    """Return what a forward pass is paid in, named in COST_NAMES; each adds up over layers.

    Traffic counts elements: each layer reads its input and its weights, and writes its output.
    """
    depthwise = sum(one.macs for one in layers if one.groups > 1)
    dense = sum(one.macs for one in layers) - depthwise
    traffic = sum(one.inputs * one.side**2 * one.rows + one.params + one.activations for one in layers)
    return 1.0, float(len(layers)), dense / 1e6, depthwise / 1e6, traffic / 1e6


def numbers(layers: Sequence[Layer], resolution: int) -> tuple[float, ...]:
    """Return the features named in NAMES, in that order; one image, biases count as parameters.

    Latency adds up over layers, hence sums in millions beside the logarithms.
    """
    macs, params = sum(one.macs for one in layers), sum(one.params for one in layers)
    activations = sum(one.activations for one in layers)
    depthwise = sum(one.macs for one in layers if one.groups > 1)
    pointwise = sum(one.macs for one in layers if one.kernel == 1 and one.groups == 1)
    kernel_5 = sum(one.macs for one in layers if one.kernel == 5)  # noqa: PLR2004 - as it is named
    stages = [sum(one.macs for one in layers if one.stage == stage) for stage in range(_STAGES)]
    return (
        math.log10(macs),
        math.log10(params),
        math.log10(activations),
        *(math.log10(1 + stage) for stage in stages),
        float(len(layers)),
        depthwise / macs,
        pointwise / macs,
        kernel_5 / macs,
        (macs - depthwise - pointwise) / 1e6,
        pointwise / 1e6,
        depthwise / 1e6,
        activations / 1e6,
        params / 1e6,
        max(one.activations for one in layers) / 1e6,
        float(resolution),
    )
