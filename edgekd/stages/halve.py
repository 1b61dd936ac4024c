"""A float model in, one whose graph computes in fp16 out: TensorRT reads the precision from the graph alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.backends import TYPED
from edgekd.errors import BuildError, ModelError, WorkerDied
from edgekd.stages.match import Match, match
from edgekd.stages.quantize import Quantizers
from edgekd.values.artifact import Artifact
from edgekd.values.halving import HalveOrder
from edgekd.values.model import Model, Precision

VERSION = 1
FP16_RELATIVE_ERROR = 0.05  # of an output's scale; fp16 keeps 11 bits, and a deep network loses a few of them


@dataclass(frozen=True, kw_only=True)
class Halved:
    """The model in fp16, with fp32 inputs and outputs."""

    model: Model
    kept: tuple[str, ...]  # nodes that stay in fp32, since their values would overflow
    match: Match  # with the fp32 model, on the samples


def cast_by_graph(runtime: str, precision: Precision) -> bool:
    """Say whether a precision of this runtime asks for another file: it computes in what the graph says."""
    return runtime in TYPED and precision is Precision.FP16


def halve(
    folder: Path,
    model: Model,
    samples: Mapping[str, Artifact],
    quantizers: Quantizers,
    *,
    most_error: float | None = FP16_RELATIVE_ERROR,
) -> Halved:
    """Cast a float .onnx to fp16 in a child process, and compare what it computes.

    A CPU computes fp16 operators in fp32, and ONNX Runtime drops roundings between them. So the file is run, and
    beside it the fp32 model with a rounding after every operator; the worse of the two counts. What sums within an
    operator lose on a GPU shows when the engine itself is verified on its device.

    Args:
        folder: for the model.
        model: in fp32.
        samples: real inputs: a .npy for each, a row an inference.
        quantizers: the child that does it.
        most_error: of an output's scale; None for a model whose outputs mean nothing yet.

    Raises:
        ModelError: the model is not in fp32, is malformed, or computes something else in fp16.
        DataError: the samples are not what it takes.
        BuildError: the child died of it.

    """
    if model.precision is not Precision.FP32:
        raise ModelError(f"{model.file.path.name} is not in fp32", cause=f"it is in {model.precision.value}")
    order = HalveOrder(model=model.file, samples=dict(samples), folder=folder.resolve())
    try:
        reply = quantizers.halve(order)
    except WorkerDied as error:  # a fact about the model, and the search goes on
        raise BuildError("casting to fp16 died", cause=f"{error.what}: {error.cause}") from error
    expected = _arrays(reply.expected)
    compared = max(
        (match(expected, _arrays(rows)) for rows in (reply.found, reply.rounded)),
        key=lambda one: one.relative_error,
    )
    spoilt = most_error is not None and compared.relative_error > most_error
    if spoilt or not math.isfinite(compared.max_error):
        raise ModelError(
            f"{model.file.path.name} computes something else in fp16",
            cause=f"output {compared.output!r} is off by {compared.relative_error:.1%} of its scale",
            mend="keep it in fp32, or in int8 with calibration",
        )
    return Halved(model=reply.model, kept=reply.kept, match=compared)


def _arrays(rows: Mapping[str, Artifact]) -> dict[str, NDArray[Any]]:
    return {name: np.load(file.verified(), allow_pickle=False) for name, file in rows.items()}
