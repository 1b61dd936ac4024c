"""One file a runtime, the only place that runtime is imported: it opens an engine and runs it.

A backend is a module of the shape `Backend`; `tests/contracts/backend.py` holds what it must do.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from typing import Protocol as Interface

from numpy.typing import NDArray

from edgekd.errors import BackendMissing, BuildError, UsageError
from edgekd.timing.session import Session, Tensors
from edgekd.values.codec import did_you_mean
from edgekd.values.layer import Layer
from edgekd.values.model import Engine, Model, Precision, TensorSpec

__all__ = [
    "NAMES",
    "PACKAGES",
    "TYPED",
    "Backend",
    "Session",
    "Tensors",
    "check_precision",
    "load",
    "misfit",
    "settled",
]

_MODULES = {
    "onnxruntime": "edgekd.backends.onnxruntime",
    "openvino": "edgekd.backends.openvino",
    "rehearsal": "edgekd.backends.rehearsal",
    "tensorrt": "edgekd.backends.tensorrt",
    "tensorrt-dla": "edgekd.backends.tensorrt",
    "tensorrt-graph": "edgekd.backends.tensorrt",
}
TYPED = frozenset(
    {"tensorrt", "tensorrt-dla", "tensorrt-graph", "trtexec"}
)  # compute in what a graph says, only
PACKAGES = {  # for pip
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "rehearsal": "onnx",
    "tensorrt": "tensorrt",
    "tensorrt-dla": "tensorrt",
    "tensorrt-graph": "tensorrt",
}

NAMES: tuple[str, ...] = tuple(name for name in _MODULES if "-" not in name)  # without their variants


class Backend(Interface):
    """What the module of a runtime offers."""

    def version(self) -> str:
        """Return the runtime's version."""

    def precisions(self) -> tuple[Precision, ...]:
        """Return the precisions that this runtime computes in on this processor."""

    def open(self, engine: Engine) -> AbstractContextManager[Session]:
        """Read and compile an engine; leaving the context frees everything it took.

        Raises:
            BuildError: the runtime refuses the model or the precision.

        """

    def compile(self, engine: Engine, folder: Path) -> Model:
        """Write what the runtime makes of a model, in a format that it reads without that work.

        Raises:
            BuildError: the runtime refuses the model or the precision.

        """

    def layers(self, engine: Engine, passes: int) -> tuple[Layer, ...]:
        """Return what the runtime made of a model, layer by layer, each timed alone in so many passes.

        They come in the order in which they run. The sum of layer times is never a latency: a profiler's clock is
        read between layers, which otherwise overlap or follow at once.

        Raises:
            BuildError: the runtime refuses the model or the precision, or says nothing of layers.

        """


def load(name: str) -> Backend:
    """Import the backend of a runtime.

    Raises:
        UsageError: no runtime has this name.
        BackendMissing: the runtime is not installed here.

    """
    if name not in _MODULES:
        raise UsageError(f"no runtime is called {name!r}", mend=did_you_mean(name, tuple(_MODULES)))
    try:
        return cast("Backend", importlib.import_module(_MODULES[name]))
    except ImportError as error:
        mend = f"run `pip install {PACKAGES[name]}` on the device"
        raise BackendMissing(f"the runtime {name} does not import", cause=str(error), mend=mend) from error


def check_precision(engine: Engine, precisions: tuple[Precision, ...]) -> None:
    """Refuse an engine whose label would not be what is computed.

    Raises:
        BuildError: the precision is not available here, or does not match the model file.

    """
    if engine.precision not in precisions:
        known = ", ".join(precision.value for precision in precisions)
        raise BuildError(f"{engine.name} is not available on this processor", mend=f"use one of: {known}")
    if (engine.precision is Precision.INT8) != (engine.model.precision is Precision.INT8):
        raise BuildError(
            f"{engine.name} cannot be made of {engine.model.file.path.name}",
            cause=f"an int8 engine needs a quantised model; this one is {engine.model.precision.value}",
            mend="quantise the model first, or ask for the precision it was made for",
        )


def settled(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    """Return the inputs with every dimension known: as given in `shapes`, else 1.

    Raises:
        BuildError: a shape is given for no input, or contradicts what the model fixes.

    """
    for name in shapes:
        if name not in {spec.name for spec in inputs}:
            known = did_you_mean(name, [spec.name for spec in inputs])
            raise BuildError(f"a shape is given for {name!r}, which is no input of the model", mend=known)
    return tuple(replace(spec, shape=_settled(spec, shapes.get(spec.name))) for spec in inputs)


def misfit(name: str, tensor: NDArray[Any], given: NDArray[Any]) -> ValueError:
    """Return the error that says why an array cannot be copied into a runtime's own."""
    return ValueError(f"{name!r} takes {tensor.dtype} {tensor.shape}, not {given.dtype} {given.shape}")


def _settled(spec: TensorSpec, given: tuple[int, ...] | None) -> tuple[int, ...]:
    if given is None:
        return tuple(1 if size is None else size for size in spec.shape)
    fits = len(given) == len(spec.shape) and all(own in {None, size} for size, own in zip(given, spec.shape))
    if not fits or any(size < 1 for size in given):
        own = "x".join("?" if size is None else str(size) for size in spec.shape) or "a scalar"
        asked = "x".join(map(str, given))
        raise BuildError(f"input {spec.name!r} cannot be {asked}", cause=f"the model says {own}")
    return given
